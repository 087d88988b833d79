"""Comparison of edgepp, mlx-lm and llama.cpp with the same weights, prompt and threads, in turn.

    python -m bench.other_engines --model smollm2-135m --threads 1

llama.cpp runs through llama-cpp-python (the extra `compare`), under another interpreter if --llama-python names one.
Its GGUF files are made from the checkpoint unless --gguf gives one: `llama.cpp` has exactly the same weights,
`llama.cpp-q4_0` the weights rounded to the format of llama.cpp's fastest kernels. `mlx-lm` runs the unchanged
checkpoint, `mlx-lm-f32` the checkpoint with float32 scales, which are faster on a CPU. Sides that cannot run are left
out, with the reason.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.to_gguf import Converter
from bench.toolkit.figures import interleave, medians, ratio_text, ratios, table
from bench.toolkit.local import checked_model
from bench.toolkit.script import Result, ScriptArguments, count, say, script
from bench.toolkit.side_program import RATES
from bench.toolkit.sides import RATE_HEADINGS, Side, rate_cells, rates_text
from edgepp.errors import EdgeppError, UsageError
from edgepp.model.weights.checkpoint import Checkpoint

SIDES = ("edgepp-1", "edgepp-2", "llama.cpp", "llama.cpp-q4_0", "mlx-lm", "mlx-lm-f32")
STAGES = 2


@dataclass(frozen=True)
class SidePlan:
    """One side: configuration of its process, its interpreter, and the tokens of one run."""

    config: Mapping[str, Any]
    prompt_tokens: int
    generate: int
    python: str = sys.executable


def sides(text: str) -> tuple[str, ...]:
    """Names of sides, separated by commas, from a command line."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in SIDES]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(SIDES)}")
    return names


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "prompt-tokens", "gen", "rounds", "backend")
    parser.add_argument("--mlx-prompt", type=count, default=8, help="the same for mlx-lm (%(default)s)")
    parser.add_argument("--mlx-gen", type=count, default=4, help="the same for mlx-lm (%(default)s)")
    parser.add_argument("--sides", type=sides, default=SIDES, help="some of " + ",".join(SIDES) + " (all)")
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help="the weights for llama.cpp, instead of converted ones"
    )
    parser.add_argument(
        "--llama-python", metavar="PYTHON", default=sys.executable, help="interpreter with llama-cpp-python (this one)"
    )
    return parser.parse_args()


def checked(options: argparse.Namespace) -> Checkpoint:
    """The model, fetched if necessary.

    Raises:
        EdgeppError: there is no such model, or the options do not fit the model.
    """
    if options.mlx_gen < 2:
        raise UsageError("a decode rate needs at least 2 generated tokens", "raise --mlx-gen")
    if options.gguf is not None and not options.gguf.is_file():
        raise UsageError(f"there is no file {options.gguf}")
    return checked_model(options, STAGES)


def planned(name: str, options: argparse.Namespace, checkpoint: Checkpoint, work: Path) -> SidePlan:
    """Plan of side ``name``; writes its GGUF file to ``work`` if it needs one.

    Raises:
        EdgeppError: the side cannot run.
    """
    common = {"model": str(checkpoint.path), "threads": options.threads}
    tokens = options.prompt_tokens, options.gen
    match name.partition("-"):
        case "edgepp", _, "1":
            return SidePlan(common | {"kind": "edgepp", "stages": None, "backend": options.backend}, *tokens)
        case "edgepp", _, _:
            return SidePlan(common | {"kind": "edgepp", "stages": STAGES, "backend": options.backend}, *tokens)
        case "mlx", _, _:
            config = common | {"kind": "mlx-lm", "float32": name == "mlx-lm-f32"}
            return SidePlan(config, options.mlx_prompt, options.mlx_gen)
        case _, _, rounded:
            gguf = options.gguf
            if rounded or gguf is None:
                gguf = work / f"{name}.gguf"
                say(f"making a GGUF file for {name}")
                Converter(checkpoint, rounded or "q4_1").write(gguf)
            config = common | {"kind": "llama.cpp", "model": str(gguf.resolve()), "context": sum(tokens)}
            return SidePlan(config, *tokens, options.llama_python)


def measured(options: argparse.Namespace) -> Result:
    """Measure every side that can run, in turn."""
    checkpoint = checked(options)
    plans: dict[str, SidePlan] = {}
    started: dict[str, tuple[Side, dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepp-engines-")))
        for name in options.sides:
            try:
                plan = plans[name] = planned(name, options, checkpoint, folder)
                side = stack.enter_context(Side(name, plan.config, plan.python))
                started[name] = side, side.wait_ready()
            except EdgeppError as error:
                left_out[name] = str(error)
                say(f"left out: {error}{f'; {error.hint}' if error.hint else ''}")
        if not started:
            raise EdgeppError("no side can run", "the reasons are above")
        work = {
            name: partial(side.round, checkpoint.vocab_size, plans[name].prompt_tokens, plans[name].generate)
            for name, (side, _) in started.items()
        }
        results = interleave(work, options.rounds, rates_text)
        found = {
            name: medians(results[name], RATES)
            | {"prompt_tokens": plans[name].prompt_tokens, "generated": plans[name].generate}
            | {"resident_bytes": side.resident_bytes, **about}
            for name, (side, about) in started.items()
        }
    ours = [name for name in work if name.startswith("edgepp")]
    compared = {
        f"{own} / {other}": ratios(results[own], results[other], _comparable(plans[own], plans[other]))
        for own in ours
        for other in work
        if other not in ours
    }
    return {"sides": found, "ratio": compared, "left_out": left_out}


def _comparable(ours: SidePlan, other: SidePlan) -> tuple[str, ...]:
    """Rates in which two sides are comparable; without equal token counts only decode."""
    equal = (ours.prompt_tokens, ours.generate) == (other.prompt_tokens, other.generate)
    return ("decode", "prefill", "e2e") if equal else ("decode",)


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    rows = [
        (name, f"{side['prompt_tokens']}+{side['generated']}", *rate_cells(side))
        for name, side in result["sides"].items()
    ]
    yield from table(("", "tokens", *RATE_HEADINGS), rows)
    for pair, found in result["ratio"].items():
        yield f"{pair}: {ratio_text(found)}"
    for name, reason in result["left_out"].items():
        yield f"{name} was left out: {reason}"


if __name__ == "__main__":
    script("other_engines", parse, measured, lines)
