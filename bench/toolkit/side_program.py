"""Program of a side: one engine, loaded once, that answers prompts on request. ``sides`` starts the program.

The program reads JSON lines on standard input, first the configuration and then one request per line, writes one JSON
line per request on standard output, and ends with the input. The interpreter is one that has the engine's library, so
the program imports only the standard library and ``processors`` before it knows the engine.
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
from typing import Any, Protocol

from bench.toolkit.processors import pin, pin_stages, share_cpus

Config = Mapping[str, Any]
RunRates = dict[str, Any]
"""Rates of a run by the names in ``RATES``, and other values of the engine."""

RATES = ("prefill_tokens_per_s", "decode_tokens_per_s", "e2e_tokens_per_s", "ttft_s")


class MeasuredEngine(Protocol):
    """Interface of a measured engine."""

    about: Mapping[str, Any]
    """Description of the engine, for the result."""

    def run(self, prompt: Sequence[int], generate: int) -> RunRates:
        """Answer ``prompt`` with exactly ``generate`` greedy tokens."""

    def close(self) -> None:
        """Release everything."""


def rates(prompt: int, generated: int, start_s: float, first_s: float, last_s: float) -> RunRates:
    """The four rates of one run, from token counts and three times, as METHODOLOGY.md defines them."""
    return {
        "prefill_tokens_per_s": prompt / (first_s - start_s),
        "decode_tokens_per_s": (generated - 1) / (last_s - first_s) if generated > 1 else 0.0,
        "e2e_tokens_per_s": generated / (last_s - start_s),
        "ttft_s": first_s - start_s,
    }


class EdgeppEngine:
    """edgepp's own engine: one process, or a pipeline of stage processes."""

    def __init__(self, config: Config) -> None:
        from edgepp.engine.pipeline import Pipeline
        from edgepp.engine.pipeline_options import PipelineOptions

        if config["stages"] is None:
            _pin_self(config)

        weights = tuple(config.get("tensor", (1,)))
        options = PipelineOptions(
            config["model"],
            stages=config["stages"],
            tensor=weights,
            threads=config["threads"],
            backend=config["backend"],
            exact=config.get("exact", False),
            speculate="off",
        )
        self._pipeline = Pipeline(options)
        if config["stages"] is not None and len(weights) == 1:
            pin_stages(self._pipeline.stages, config["threads"])
        stages = [
            {"layers": str(stage.layers), "backend": stage.backend, "hop_us": stage.hop_s * 1e6}
            for stage in self._pipeline.stages
        ]
        self.about: Mapping[str, Any] = {"version": version("edgepp"), "stages": stages}

    def run(self, prompt: Sequence[int], generate: int, requests: int = 1) -> RunRates:
        """Answer ``prompt`` with exactly ``generate`` greedy tokens, ``requests`` times at once.

        Rates of several requests are those of all requests together.
        """
        from bench.toolkit.local import arrivals
        from edgepp.benchmark.workload import decode_step
        from edgepp.engine.request import GenerateOptions

        options = GenerateOptions(max_tokens=generate, ignore_eos=True)
        asked = [self._pipeline.engine.submit([*prompt[n:], *prompt[:n]], options) for n in range(requests)]
        for request in asked:
            arrivals(request)
        times = [request.timing for request in asked]
        first_s = max(timing.first_token_s for timing in times)
        last_s = max(timing.last_token_s for timing in times)
        result = rates(len(prompt) * requests, generate * requests, times[0].submitted_s, first_s, last_s)
        step = decode_step(times[0])
        parts = {"stages": step.stages_ms, "wire": step.wire_ms, "coordinator": step.coordinator_ms}
        return result | {"step_ms": parts, "tokens": asked[0].ids[len(prompt) :]}

    def close(self) -> None:
        """Release everything."""
        self._pipeline.close()


class MlxLmEngine:
    """mlx-lm's own generation loop over the same checkpoint."""

    def __init__(self, config: Config) -> None:
        _pin_self(config)
        import mlx.core as mx
        from mlx_lm.utils import load_model

        self._model, _ = load_model(Path(config["model"]))
        if config["float32"]:
            self._model.set_dtype(mx.float32)
        self.about: Mapping[str, Any] = {"version": version("mlx-lm"), "device": str(mx.default_device())}

    def run(self, prompt: Sequence[int], generate: int) -> RunRates:
        """Answer ``prompt`` with exactly ``generate`` greedy tokens."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        times_s, tokens = [time.perf_counter()], []
        for token, _ in generate_step(mx.array(list(prompt)), self._model, max_tokens=generate):
            times_s.append(time.perf_counter())
            tokens.append(token)
        return rates(len(prompt), generate, times_s[0], times_s[1], times_s[-1]) | {"tokens": tokens}

    def close(self) -> None:
        """Release everything."""


class LlamaCppEngine:
    """llama.cpp through its C interface, without the Python overhead of llama-cpp-python."""

    def __init__(self, config: Config) -> None:
        _pin_self(config)
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

    def run(self, prompt: Sequence[int], generate: int) -> RunRates:
        """Answer ``prompt`` with exactly ``generate`` greedy tokens."""
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
        """Release everything."""
        self._llama.close()


def _traced(config: Config) -> MeasuredEngine:
    """edgepp's own engine, which notes the times of every step."""
    from bench.toolkit.hop_tracing import TracedEngine

    return TracedEngine(config)


def _oracle_engine(config: Config) -> MeasuredEngine:
    from bench.toolkit.oracle import OracleEngine

    return OracleEngine(config)


KINDS: Mapping[str, Callable[[Config], MeasuredEngine]] = {
    "edgepp": EdgeppEngine,
    "traced": _traced,
    "oracle": _oracle_engine,
    "mlx-lm": MlxLmEngine,
    "llama.cpp": LlamaCppEngine,
}


def _pin_self(config: Config) -> None:
    """Pin this process to as many CPUs as it has threads, if possible."""
    if shares := share_cpus(1, config["threads"]):
        pin(os.getpid(), shares[0])


def main() -> None:
    """Run the engine that the first line of standard input describes, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    del sys.path[0]  # the folder of this file must not be imported from, in this process or a stage
    config = json.loads(sys.stdin.readline())
    try:
        engine = KINDS[config["kind"]](config)
        try:
            answer(engine.about)
            for line in sys.stdin:
                answer(engine.run(**json.loads(line)))
        finally:
            engine.close()
    except Exception as error:  # noqa: BLE001 - boundary of the process: the parent prints the error
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
