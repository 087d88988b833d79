"""edgepp beside mlx-lm on the GPU of this machine, by the shape of the model; weights are random.

    python -m bench.gpu
    python -m bench.gpu --shapes llama-3.2-1b-4bit --seconds 120 --json
    python -m bench.gpu --shapes tiny --prompt-tokens 64 --gen 16      # also without a GPU

Per shape, in this order: rates of mlx-lm, of edgepp in one process and as two stage processes on the same device, in
turn; whether edgepp's greedy tokens are those of mlx-lm's model; and many requests at once. At last the tokens of the
first shape in float32, and for every shape prefill by the length of chunks.

The tokens are compared with mlx-lm's layers called with the rows that edgepp calls them with, since kernels round by
the number of rows; on a CPU edgepp computes 16-bit checkpoints in float32, so these differ. After --seconds, what has
not been measured is left out.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.toolkit.figures import interleave, medians, prompt, ratio_text, ratios, table
from bench.toolkit.script import Result, ScriptArguments, count, counts, say, script
from bench.toolkit.side_program import RATES
from bench.toolkit.sides import RATE_HEADINGS, Side, rate_cells, rates_text
from edgepp import backend
from edgepp.backend.base import BackendOptions
from edgepp.backend.device import device
from edgepp.benchmark.report import rounded
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError
from edgepp.model.catalogue.cards import Shape, find
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint

SHAPES = "llama-3.2-1b-4bit,llama-3.1-8b-4bit,llama-3.2-1b-bf16"
SIDES = ("mlx-lm", "one process", "two stages")
_SHORT_PROMPT, _COMPARED = 16, 64
"""Tokens of prompts where their prefill does not matter: as few as rows of a micro-batch, so the same kernels."""
_CHUNKED_PROMPT = 4096


class OutOfTime(EdgeppError):  # noqa: N818 - not an error: it ends the script, which reports what it has
    """The time limit of the script has come."""


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("threads", "backend", prompt_tokens=2048, gen=128, rounds=3)
    parser.add_argument("--shapes", default=SHAPES, help="names in `edgepp models list`, or `tiny` (%(default)s)")
    parser.add_argument("--requests", type=count, default=16, help="requests at once (%(default)s)")
    parser.add_argument("--chunks", type=counts, default=[512, 1024, 2048, 4096], help="(512,1024,2048,4096)")
    parser.add_argument("--seconds", type=count, default=540, help="time limit of the script (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where checkpoints are made")
    return parser.parse_args()


def shape_of(name: str) -> Shape:
    """The shape called ``name``."""
    if name == "tiny":
        return replace(TINY, context=_CHUNKED_PROMPT, dtype="bfloat16")
    card = find(name)
    return Shape(**{field: getattr(card, field) for field in Shape.__dataclass_fields__})


class ShapeRun:
    """Measurements of one shape, which put what they find into ``found`` as they go."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace, stack: ExitStack, *, first: bool) -> None:
        self._options, self._stack, self._first = options, stack, first
        began_s = time.perf_counter()
        self._path = make_checkpoint(folder / name, shape_of(name), rope_theta=500000.0)
        self._vocabulary = shape_of(name).vocabulary
        self.found: dict[str, Any] = {"shape": name, "checkpoint_s": time.perf_counter() - began_s}
        self._sides: dict[str, Side] = {}

    def _side(self, name: str, **config: Any) -> Side:
        options = self._options
        common = {"kind": "edgepp", "model": str(self._path), "threads": options.threads, "backend": options.backend}
        return self._stack.enter_context(Side(name, {**common, **config}))

    def _wait_ready(self, side: Side) -> None:
        """Wait until the model of a side is loaded; a side that cannot load is left out."""
        began_s = time.perf_counter()
        try:
            about = side.wait_ready()
        except OutOfTime:
            raise
        except EdgeppError as error:
            self.found.setdefault("left_out", {})[side.name] = str(error)
            say(f"left out: {error}")
            return
        self._sides[side.name] = side
        say(f"{self.found['shape']}: {side.name}: ready in {time.perf_counter() - began_s:.1f} s: {about}")

    def rates(self) -> None:
        """Decode and prefill of the three sides. Those of the first shape start one by one, since they compile."""
        options, found = self._options, self.found
        configs: tuple[dict[str, Any], ...] = ({"kind": "mlx-lm", "float32": False}, {"stages": None}, {"stages": 2})
        sides = (self._side(name, **config) for name, config in zip(SIDES, configs, strict=True))
        for side in sides if self._first else list(sides):
            self._wait_ready(side)
        size = self._vocabulary, options.prompt_tokens, options.gen
        work = {name: partial(side.round, *size) for name, side in self._sides.items()}
        results = interleave(work, options.rounds, rates_text)
        found["rates"] = {name: medians(rounds, RATES) for name, rounds in results.items()}
        found["step_ms"] = {name: rounds[-1]["step_ms"] for name, rounds in results.items() if name != SIDES[0]}
        found["ratio"] = {
            f"{over} / {under}": ratios(results[over], results[under], ("decode", "prefill"))
            for under, over in pairwise(SIDES)
            if {over, under} <= results.keys()
        }

    def requests(self) -> None:
        """Token rate of many requests at once, beside one request; both with their prompts."""
        options, side = self._options, self._sides[SIDES[1]]
        ids = prompt(self._vocabulary, _SHORT_PROMPT, 1)
        cases: dict[str, Callable[[int], dict[str, Any]]] = {
            str(n): partial(_run, side, ids, options.gen, n) for n in (1, options.requests)
        }
        results = interleave(cases, max(1, options.rounds - 1), rates_text)
        rate = {n: statistics.median(one["e2e_tokens_per_s"] for one in rounds) for n, rounds in results.items()}
        self.found["requests"] = {
            "tokens_per_s": rate,
            "ratio": rate[str(options.requests)] / rate["1"],
        }

    def equal_tokens(self) -> None:
        """Leading greedy tokens of edgepp that are those of mlx-lm's model, in the checkpoint's dtype."""
        ids = prompt(self._vocabulary, _SHORT_PROMPT, 7)
        expected = mlx_lm_tokens(self._path, ids, float32=False)
        self.found["equal_tokens"] = {
            name: leading(expected, side.run(ids, _COMPARED)["tokens"]) for name, side in self._sides.items()
        }

    def equal_tokens_in_float32(self) -> None:
        """The same with ``--exact``."""
        ids = prompt(self._vocabulary, _SHORT_PROMPT, 7)
        with ExitStack() as self._stack:
            side = self._side("one process in float32", stages=None, exact=True)
            self._wait_ready(side)
            tokens = side.run(ids, _COMPARED)["tokens"]
        self.found["equal_tokens_in_float32"] = leading(mlx_lm_tokens(self._path, ids, float32=True), tokens)

    def prefill_by_chunk(self) -> None:
        """Prefill rate of all layers by the length of chunks, in this process."""
        checkpoint = Checkpoint.open(self._path)
        chosen = backend.choose(self._options.backend, checkpoint)
        stage, ends = chosen.load_whole(checkpoint, BackendOptions(threads=self._options.threads))
        tokens = min(_CHUNKED_PROMPT, checkpoint.context)
        ids = prompt(self._vocabulary, tokens, 3)

        def prefill(chunk: int, _turn: int) -> float:
            stage.open(1, tokens)
            began_s = time.perf_counter()
            for start in range(0, tokens, chunk):
                stage.extend(1, ends.embed(ids[start : start + chunk], start))
            return tokens / (time.perf_counter() - began_s)

        results = interleave({chunk: partial(prefill, chunk) for chunk in self._options.chunks}, 2)
        self.found["prefill_tokens_per_s_by_chunk"] = {str(n): max(rates) for n, rates in results.items()}


def _run(side: Side, ids: Sequence[int], generate: int, requests: int, _turn: int) -> dict[str, Any]:
    return side.run(ids, generate, requests=requests)


def leading(expected: Sequence[int], tokens: Sequence[int]) -> dict[str, int]:
    """Number of leading ``tokens`` that equal the ``expected`` ones, and number compared."""
    right = next((n for n, (a, b) in enumerate(zip(expected, tokens, strict=True)) if a != b), len(expected))
    return {"equal": right, "of": len(expected)}


def mlx_lm_tokens(path: Path, ids: Sequence[int], *, float32: bool) -> list[int]:
    """Greedy tokens of mlx-lm's model: the prompt in one pass, of which the head sees the last row."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model: Any = load_model(path)[0]
    if float32:
        model.set_dtype(mx.float32)
    cache = make_prompt_cache(model)
    hidden = model.model(mx.array([list(ids)]), cache=cache)[:, -1:]
    logits = model.lm_head(hidden) if "lm_head" in model else model.model.embed_tokens.as_linear(hidden)
    tokens: list[int] = []
    while True:
        largest: Any = mx.argmax(logits[0, -1].astype(mx.float32)).item()
        tokens.append(int(largest))
        if len(tokens) == _COMPARED:
            return tokens
        logits = model(mx.array([tokens[-1:]]), cache=cache)


def measured(options: argparse.Namespace) -> Result:
    """All that is measured before the time limit."""
    os.environ["MLX_ENABLE_TF32"] = "0"  # as edgepp does for --exact; read at the first product
    import mlx.core as mx

    result: dict[str, Any] = {
        "device": device(), "device_name": mx.device_info().get("device_name"), "rows": [], "left_out": {}
    }  # fmt: skip
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, options.seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="edgepp-gpu-", dir=options.work) as folder:
            runs = [_measure_shape(name, Path(folder), options, result) for name in options.shapes.split(",")]
            _measure_part(runs[0], runs[0].equal_tokens_in_float32, result)
            for run in runs:
                _measure_part(run, run.prefill_by_chunk, result)
    except OutOfTime as error:
        result["ended_early"] = str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return result


def _measure_shape(name: str, folder: Path, options: argparse.Namespace, result: dict[str, Any]) -> ShapeRun:
    """Measure what needs the sides of one shape, which end with it."""
    with ExitStack() as stack:
        run = ShapeRun(name, folder, options, stack, first=not result["rows"])
        result["rows"].append(run.found)
        for part in (run.rates, run.equal_tokens, run.requests):
            _measure_part(run, part, result)
    return run


def _measure_part(run: ShapeRun, part: Callable[[], None], result: dict[str, Any]) -> None:
    """Measure one part; if it fails, it is left out with its reason, and the rest goes on."""
    known, name = set(run.found), run.found["shape"]
    try:
        part()
    except OutOfTime:
        raise
    except Exception as error:  # noqa: BLE001 - the boundary of one part
        result["left_out"][f"{name}: {part.__name__}"] = str(failure(error, part.__name__))
        say(f"{name}: {part.__name__} failed: {error}")
    say(f"{name}: {rounded({key: found for key, found in run.found.items() if key not in known})}")


def _out_of_time(_signal: int, _frame: object) -> None:
    raise OutOfTime("the time limit has come")


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    for row in result["rows"]:
        yield f"{row['shape']} on {result['device']}, {result['device_name']}"
        if "ratio" in row:
            yield from table(("", *RATE_HEADINGS), [(name, *rate_cells(found)) for name, found in row["rates"].items()])
            yield from (f"{pair}: {ratio_text(found)}" for pair, found in row["ratio"].items())
        for part in ("requests", "equal_tokens", "equal_tokens_in_float32", "prefill_tokens_per_s_by_chunk"):
            yield f"{part.replace('_', ' ')}: {row.get(part, 'not measured')}"
    for part, reason in result["left_out"].items():
        yield f"{part} was left out: {reason}"


if __name__ == "__main__":
    script("gpu", parse, measured, lines)
