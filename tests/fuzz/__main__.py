"""Fuzz all targets in turn, or those that are named, for some minutes together.

    python -m tests.fuzz --minutes 60
    python -m tests.fuzz --minutes 10 --target wire,http-bodies

Each target has a corpus in ``--folder``, from which the next run goes on. An input that breaks an invariant is written
to ``found`` in the folder, and the result has the command that gives it to its target again. The target ``properties``
runs the tests with hypothesis over fresh examples.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.toolkit.script import Result, ScriptArguments, say, script
from edgepp.errors import EdgeppError, UsageError
from tests.fuzz.campaign import PROPERTIES, Campaign, explore, fuzz
from tests.fuzz.targets import TARGETS

_MIN_S = 5.0
_NAMES = (*TARGETS, PROPERTIES)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.prog = "python -m tests.fuzz"
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together (%(default)s)")
    parser.add_argument("--target", default="all", help=f"with commas between them: {', '.join(_NAMES)} (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="of corpora and findings (%(default)s)")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Result:
    """Fuzz each target for its share of the time."""
    names = _NAMES if options.target == "all" else tuple(options.target.split(","))
    for name in names:
        if name not in _NAMES:
            raise UsageError(f"there is no target '{name}'", f"name some of {', '.join(_NAMES)}")
    share_s = 60 * options.minutes / len(names)
    if share_s < _MIN_S:
        raise UsageError(f"{share_s:.0f} s for each target are too few", "give more --minutes, or fewer targets")
    options.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        say(f"{name}: {share_s:.0f} s")
        campaign = explore(share_s, options.folder) if name == PROPERTIES else fuzz(name, share_s, options.folder)
        say("\n".join(_told(campaign)))
        found[name] = _result(campaign)
    return {"targets": found}


def _result(campaign: Campaign) -> dict[str, Any]:
    memory = campaign.memory or [(0.0, 0.0)]
    return {
        **{name: value for name, value in asdict(campaign).items() if name not in ("memory", "target")},
        "memory_mb": [memory[0][1], memory[-1][1]],
        "grown_mb_per_min": campaign.grown_mb_per_min,
    }


def _told(campaign: Campaign) -> Iterator[str]:
    yield (
        f"{campaign.target}: {campaign.runs} runs in {campaign.seconds:.0f} s, {campaign.features} features, "
        f"{len(campaign.crashes)} crashes, {campaign.grown_mb_per_min:+.1f} MB per minute"
    )
    for crash in campaign.crashes:
        yield f"  {crash.error}\n  {crash.replay}"


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    yield f"{'target':14} {'runs':>10} {'features':>9} {'corpus':>7} {'crashes':>8} {'MB/min':>8}"
    for name, one in result["targets"].items():
        yield (
            f"{name:14} {one['runs']:10} {one['features']:9} {one['corpus']:7} {len(one['crashes']):8} "
            f"{one['grown_mb_per_min']:+8.1f}"
        )


def faults(_: argparse.Namespace, result: Result) -> EdgeppError | None:
    """Error of a run that found a crash; None otherwise."""
    crashes = [crash["replay"] for one in result["targets"].values() for crash in one["crashes"]]
    return EdgeppError(f"{len(crashes)} crashes", f"begin with `{crashes[0]}`") if crashes else None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    script("fuzz", parse, measured, lines, faults)
