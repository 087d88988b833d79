"""The program of a side: one engine, loaded once, that answers prompts when it is told to.

It reads JSON lines on standard input, first its configuration and then one request a line, writes one JSON line for
each on standard output, and ends with its input. It runs under whatever interpreter has the engine's library, so it
imports nothing but the standard library until it knows which engine it is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edgepp.engine.engine_request import EngineRequest

Config = Mapping[str, Any]
Result = dict[str, Any]
"""A run's rates, by the names in ``RATES``, and whatever else the engine can tell."""

RATES = ("prefill_tok_s", "decode_tok_s", "e2e_tok_s", "ttft_s")


class Engine(Protocol):
    """What is measured."""

    about: Mapping[str, Any]

    def run(self, prompt: Sequence[int], generate: int) -> Result:
        """Answer ``prompt`` with exactly ``generate`` greedy tokens."""

    def close(self) -> None:
        """Release everything."""


def rates(prompt: int, generated: int, start_s: float, first_s: float, last_s: float) -> Result:
    """The four rates of one run, from its token counts and three times; METHODOLOGY.md says why these."""
    return {
        "prefill_tok_s": prompt / (first_s - start_s),
        "decode_tok_s": (generated - 1) / (last_s - first_s) if generated > 1 else 0.0,
        "e2e_tok_s": generated / (last_s - start_s),
        "ttft_s": first_s - start_s,
    }


def pin(pid: int, cpus: Sequence[int] | None) -> None:
    """Hold every thread of a process to ``cpus``, and with them the threads they will start."""
    if cpus is not None:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cpus)


def arrivals(request: EngineRequest, came: list[float] | None = None) -> list[float]:
    """Wait for a request's last token: when each came, in ``came`` as soon as it has.

    Raises:
        EdgeppError: the answer failed.
    """
    from edgepp.errors import EdgeppError

    came = [] if came is None else came
    while not isinstance(event := request.events.get(), str):
        if isinstance(event, EdgeppError):
            raise event
        came.append(time.perf_counter())
    return came


class Edgepp:
    """edgepp's own engine: one process, or a pipeline of stage processes."""

    def __init__(self, config: Config) -> None:
        from edgepp.engine.pipeline import Pipeline, PipelineOptions

        options = PipelineOptions(
            config["model"],
            stages=config["stages"],
            threads=config["threads"],
            backend=config["backend"],
            speculate="off",
        )
        self._pipeline = Pipeline(options)
        for stage, cpus in zip(self._pipeline.stages, config["stage_cpus"] or (), strict=False):
            pin(stage.pid, cpus)
        stages = [
            {"layers": str(stage.layers), "backend": stage.backend, "hop_us": stage.hop_s * 1e6}
            for stage in self._pipeline.stages
        ]
        self.about: Mapping[str, Any] = {"version": version("edgepp"), "stages": stages}

    def run(self, prompt: Sequence[int], generate: int) -> Result:
        """See ``Engine``."""
        from edgepp.engine.request import GenerateOptions

        options = GenerateOptions(max_tokens=generate, ignore_eos=True)
        request = self._pipeline.engine.submit(prompt, options)
        arrivals(request)
        timing = request.timing
        result = rates(len(prompt), generate, timing.submitted_s, timing.first_token_s, timing.last_token_s)
        return result | {"step_ms": self._step_ms(timing, generate - 1)}

    @staticmethod
    def _step_ms(timing: Any, steps: int) -> dict[str, Any]:
        """Where the time of one decode step goes; what is neither a stage nor the wire is the coordinator."""
        if not steps:
            return {"stages": [], "wire": 0.0, "coordinator": 0.0}
        total = (timing.last_token_s - timing.first_token_s) * 1e3 / steps
        stages = [times.decode_s * 1e3 / steps for times in timing.stages]
        wire = sum(times.wire_s for times in timing.stages) * 1e3 / steps
        return {"stages": stages, "wire": wire, "coordinator": total - wire - sum(stages)}

    def close(self) -> None:
        """See ``Engine``."""
        self._pipeline.close()


class MlxLm:
    """mlx-lm's own generation loop over the same checkpoint."""

    def __init__(self, config: Config) -> None:
        import mlx.core as mx
        from mlx_lm.utils import load_model

        self._model, _ = load_model(Path(config["model"]))
        if config["float32"]:
            self._model.set_dtype(mx.float32)
        self.about: Mapping[str, Any] = {"version": version("mlx-lm"), "device": str(mx.default_device())}

    def run(self, prompt: Sequence[int], generate: int) -> Result:
        """See ``Engine``."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        times_s = [time.perf_counter()]
        tokens = generate_step(mx.array(list(prompt)), self._model, max_tokens=generate)
        times_s += [time.perf_counter() for _ in tokens]
        return rates(len(prompt), len(times_s) - 1, times_s[0], times_s[1], times_s[-1])

    def close(self) -> None:
        """See ``Engine``."""


class LlamaCpp:
    """llama.cpp by its C interface, so that no Python of llama-cpp-python's stands in its way."""

    def __init__(self, config: Config) -> None:
        self._api: Any = import_module("llama_cpp")
        self._llama = self._api.Llama(
            model_path=config["model"],
            n_ctx=config["context"],
            n_batch=config["context"],
            n_threads=config["threads"],
            n_threads_batch=config["threads"],
            verbose=False,
        )
        self.about: Mapping[str, Any] = {
            "version": version("llama-cpp-python"),
            "file": Path(config["model"]).name,
            "kernels": self._api.llama_print_system_info().decode(),
        }

    def run(self, prompt: Sequence[int], generate: int) -> Result:
        """See ``Engine``."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._llama.ctx), True)
        start_s = time.perf_counter()
        token = self._step(prompt)
        first_s = time.perf_counter()
        for _ in range(generate - 1):
            token = self._step([token])
        return rates(len(prompt), generate, start_s, first_s, time.perf_counter())

    def _step(self, tokens: Sequence[int]) -> int:
        import numpy as np

        array = (self._api.llama_token * len(tokens))(*tokens)
        if status := self._api.llama_decode(self._llama.ctx, self._api.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError(f"llama_decode failed with status {status}")
        logits = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self._llama.n_vocab(),)).argmax())

    def close(self) -> None:
        """See ``Engine``."""
        self._llama.close()


KINDS: Mapping[str, Callable[[Config], Engine]] = {"edgepp": Edgepp, "mlx-lm": MlxLm, "llama.cpp": LlamaCpp}


def main() -> None:
    """Be the side that the first line of standard input describes, until that input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    config = json.loads(sys.stdin.readline())
    try:
        pin(os.getpid(), config["cpus"])
        engine = KINDS[config["kind"]](config)
        try:
            answer(engine.about)
            for line in sys.stdin:
                answer(engine.run(**json.loads(line)))
        finally:
            engine.close()
    except Exception as error:  # noqa: BLE001 - the process's boundary: the parent says it in one sentence
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
