"""HTTP against the Python API: the time to the first token, and the rate of several streams.

    python -m bench.http_overhead --model smollm2-135m --stages 2 --threads 1 --streams 8 --rounds 20

One cluster answers both; METHODOLOGY.md defines the numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.toolkit.figures import interleave, spread_text, table
from bench.toolkit.http_load import HttpLoad, InProcess, MeasuredCluster, cluster_with_http, together
from bench.toolkit.script import Result, ScriptArguments, count, script
from edgepp.benchmark.prompts import numbers
from edgepp.benchmark.report import Spread
from edgepp.benchmark.workload import ObservedAnswer, RequestGroup, ask_at_once

Case = tuple[str, str]
"""The measurement, ``first`` or ``streams``, and the side, ``python`` or ``http``."""
SIDES = ("python", "http")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "stages", "threads", "backend", rounds=20)
    parser.add_argument("--streams", type=count, default=8, help="streams at once (%(default)s)")
    parser.add_argument("--words", type=count, default=50, help="words of a story of a stream (%(default)s)")
    parser.add_argument("--firsts", type=count, default=8, help="lone requests per round and side (%(default)s)")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Result:
    """Measure both sides in turn."""
    with asyncio.Runner() as runner:
        place = cluster_with_http(options.model, options.stages, options.threads, options.backend)
        opened = runner.run(place.__aenter__())
        try:
            load = runner.run(HttpLoad.start(opened.url, options.model))
            try:
                found = _rounds(runner, opened, load, options)
            finally:
                runner.run(load.close())
        finally:
            runner.run(place.__aexit__(None, None, None))
    return {**figures(found), "pinned": opened.pinned}


def _rounds(
    runner: asyncio.Runner, opened: MeasuredCluster, load: HttpLoad, options: argparse.Namespace
) -> dict[Case, list[list[ObservedAnswer]]]:
    first_words = numbers()
    groups = {"first": RequestGroup(1, 10), "streams": RequestGroup(options.streams, options.words)}
    asked = InProcess(opened.cluster)

    def answers(case: Case, _turn: int) -> list[ObservedAnswer]:
        what, side = case
        if side == "http":
            return runner.run(load.ask_at_once(groups[what], first_words))
        return runner.run(ask_at_once(asked, groups[what], first_words))

    found: dict[Case, list[list[ObservedAnswer]]] = {}
    for what, rounds in (("first", options.rounds * options.firsts), ("streams", options.rounds)):
        found |= interleave({(what, side): partial(answers, (what, side)) for side in SIDES}, rounds)
    return found


def figures(found: dict[Case, list[list[ObservedAnswer]]]) -> Result:
    """Medians with their spread; a difference and a ratio are formed within a round."""
    first = {side: [answers[0].arrivals_s[0] * 1e3 for answers in found["first", side]] for side in SIDES}
    rates = {side: [together(answers) for answers in found["streams", side]] for side in SIDES}
    added = [over - under for over, under in zip(first["http"], first["python"], strict=True)]
    return {
        "ttft_ms": {side: _with_spread(Spread.of(first[side])) for side in SIDES},
        "added_ttft_ms": _with_spread(Spread.of(added)),
        "added_ttft_mean_ms": statistics.fmean(added),
        "aggregate_tokens_per_s": {side: _with_spread(Spread.of(rates[side])) for side in SIDES},
        "rate_ratio": _with_spread(Spread.of_ratios(rates["http"], rates["python"])),
    }


def _with_spread(value: Spread) -> dict[str, Any]:
    return {"median": value.median, "spread": [value.low, value.high]}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    rows = [
        (name, *(spread_text(result[key][side]["median"], result[key][side]["spread"], ".4g") for side in SIDES),
         spread_text(result[both]["median"], result[both]["spread"], ".4g"))
        for name, key, both in (
            ("first token, ms", "ttft_ms", "added_ttft_ms"),
            ("streams, token/s", "aggregate_tokens_per_s", "rate_ratio"),
        )
    ]  # fmt: skip
    yield from table(("", "Python API", "HTTP", "difference, ratio"), rows)


if __name__ == "__main__":
    script("http_overhead", parse, measured, lines)
