"""Gain of a pipeline of stage processes on this machine over one process, with the same threads per stage.

    python -m bench.pipeline_gain --model smollm2-135m --stages 2 --threads 1

Each stage is limited to its threads and, if the system supports it and has enough CPUs, pinned to its own CPUs.
METHODOLOGY.md defines the numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.toolkit.figures import interleave, medians, ratio_text, ratios, table
from bench.toolkit.local import checked_model
from bench.toolkit.processors import share_cpus
from bench.toolkit.script import Result, ScriptArguments, say, script
from bench.toolkit.side_program import RATES
from bench.toolkit.sides import RATE_HEADINGS, Side, rate_cells, rates_text
from edgepp.benchmark.workload import middle_decode

SIDES = ("single", "pipeline")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "stages", "threads", "prompt-tokens", "gen", "rounds", "backend")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Result:
    """Measure both sides in turn."""
    checkpoint = checked_model(options, options.stages)
    common = {"kind": "edgepp", "model": str(checkpoint.path), "threads": options.threads, "backend": options.backend}
    pinned = share_cpus(options.stages, options.threads)
    if pinned is None:
        say("the stages are not pinned: this system cannot, or has too few CPUs")
    with ExitStack() as stack:
        configs = zip(SIDES, (None, options.stages), strict=True)
        sides = [stack.enter_context(Side(name, {**common, "stages": stages})) for name, stages in configs]
        about = {side.name: side.wait_ready() for side in sides}
        size = checkpoint.vocab_size, options.prompt_tokens, options.gen
        results = interleave({side.name: partial(side.round, *size) for side in sides}, options.rounds, rates_text)
        found: dict[str, Any] = {
            side.name: {
                **medians(results[side.name], RATES),
                "step_ms": middle_decode(results[side.name], lambda one: float(one["decode_tokens_per_s"]))["step_ms"],
                "resident_bytes": side.resident_bytes,
                **about[side.name],
            }
            for side in sides
        }
    compared = ratios(results["pipeline"], results["single"], ("decode", "prefill", "e2e"))
    return {**found, "ratio": compared, "pinned": pinned}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    yield from table(("", *RATE_HEADINGS), [(name, *rate_cells(result[name])) for name in SIDES])
    yield f"pipeline / single: {ratio_text(result['ratio'])}"
    for name in SIDES:
        step = result[name]["step_ms"]
        stages = " + ".join(f"{ms:.2f}" for ms in step["stages"])
        rest = f"wire {step['wire']:.2f}, coordinator {step['coordinator']:.2f}"
        yield f"{name}, ms of a decode step: stages {stages}, {rest}"


if __name__ == "__main__":
    script("pipeline_gain", parse, measured, lines)
