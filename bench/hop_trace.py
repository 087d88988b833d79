"""Parts of the time of a token in a pipeline that computes, hop by hop, on one clock.

    python -m bench.hop_trace --stages 1,2,4

One request at a time, in turn with one process that has the whole model. METHODOLOGY.md defines the parts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.toolkit import hop_variants, wake_ups
from bench.toolkit.figures import interleave, medians, ratio_text, ratios, table
from bench.toolkit.local import checked_model
from bench.toolkit.script import Result, ScriptArguments, counts, script
from bench.toolkit.side_program import RATES
from bench.toolkit.sides import Side, rates_text

SINGLE = "single"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "backend", rounds=3, prompt_tokens=32, gen=64)
    parser.add_argument("--stages", type=counts, default=[1, 2], help="numbers of stages, in turn (1,2)")
    parser.add_argument(
        "--variants",
        type=variants,
        default=[],
        help=f"measure pipelines in these ways too: {','.join(hop_variants.NAMES)}",
    )
    return parser.parse_args()


def variants(text: str) -> list[str]:
    """Names of variants, from a command line."""
    names = text.split(",")
    if not set(names) <= set(hop_variants.NAMES):
        raise argparse.ArgumentTypeError(f"'{text}' are not variants")
    return names


def measured(options: argparse.Namespace) -> Result:
    """Measure all sides in turn."""
    checkpoint = checked_model(options, max(options.stages))
    common = {"kind": "traced", "model": str(checkpoint.path), "threads": options.threads, "backend": options.backend}
    configs: dict[str, dict[str, Any]] = {SINGLE: {"stages": None, "variant": ""}}
    for stages in options.stages:
        for variant in ("", *options.variants):
            configs[f"{stages} {variant}".strip()] = {"stages": stages, "variant": variant}
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(name, common | config)) for name, config in configs.items()]
        for side in sides:
            side.wait_ready()
        size = checkpoint.vocab_size, options.prompt_tokens, options.gen
        results = interleave({side.name: partial(side.round, *size) for side in sides}, options.rounds, rates_text)
    found: dict[str, Any] = {name: _summary(rounds) for name, rounds in results.items()}
    for name in configs:
        found[name]["ratio"] = ratios(results[name], results[SINGLE], ("decode",))
    return {"sides": found, "wake_ups_us": wake_ups.measure(), "idle": idle_states()}


def _summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parts = {name: statistics.median(one["parts_us"][name] for one in rounds) for name in rounds[0]["parts_us"]}
    return {**medians(rounds, RATES), "parts_us": parts, "threads_us": rounds[-1]["threads_us"]}


def idle_states() -> dict[str, str]:
    """Idle states of this machine's processors by Linux; empty on other systems."""
    folder = Path("/sys/devices/system/cpu/cpuidle")
    files = [folder / name for name in ("current_driver", "current_governor")]
    return {file.name: file.read_text(encoding="ascii").strip() for file in files if file.exists()}


def hop_us(parts: Mapping[str, float]) -> float:
    """Mean microseconds of a hop, of which there is one more than stages: all but computing and the coordinator."""
    ways = [us for name, us in parts.items() if name.startswith("wire")]
    handling = [us for name, us in parts.items() if name.endswith((" receive", " send"))]
    return (sum(ways) + sum(handling)) / len(ways) if ways else 0.0


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    ways = ", ".join(f"{way} {us['median']:.0f} (95 %: {us['p95']:.0f})" for way, us in result["wake_ups_us"].items())
    yield f"a few bytes to another process, µs: {ways}"
    for name, side in result["sides"].items():
        parts = side["parts_us"]
        yield f"{name}: decode ratio {ratio_text(side['ratio'])}, hop {hop_us(parts):.0f} µs"
        yield from table(("part", "µs"), [(part, f"{us:.0f}") for part, us in parts.items()])
        rows = [
            (f"{process}: {thread}", *(f"{us:.0f}" for us in times))
            for process, threads in side["threads_us"].items()
            for thread, times in threads.items()
        ]
        yield from table(("thread, µs per token", "running", "waiting to run"), rows)


if __name__ == "__main__":
    script("hop_trace", parse, measured, lines)
