"""Several requests at the same time: token rate per request and in all, and waiting times, as in the origin's tables.

    python -m bench.concurrency --model smollm2-135m --stages 2 --threads 1 --requests 1,4,16 --words 25,100

Every request asks for a story of N words; in a second table, for a title of a text of 484 words. METHODOLOGY.md defines
the numbers. Each round measures all settings in turn.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench.toolkit.figures import interleave, spread_text, table
from bench.toolkit.processors import pin_stages
from bench.toolkit.script import Arguments, Result, counts, script
from edgepp import Engine
from edgepp.benchmark.prompts import numbers
from edgepp.benchmark.workload import FreshOwners, ObservedAnswer, RequestGroup, ask_at_once, concurrent_result


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = Arguments(__doc__)
    parser.shared("model", "stages", "threads", "backend", rounds=3)
    parser.add_argument(
        "--requests",
        dest="requests_at_once",
        metavar="N,...",
        type=counts,
        default=[1, 2, 4, 8, 16],
        help="requests at once (1,2,4,8,16)",
    )
    parser.add_argument("--words", type=counts, default=[25, 50, 100], help="words of a story (25,50,100)")
    parser.add_argument("--no-text", action="store_true", help="leave out the table with a text of 484 words")
    parser.add_argument("--speculate", default="off", help="what guesses tokens ahead, as in chat (%(default)s)")
    return parser.parse_args()


def groups(options: argparse.Namespace) -> list[RequestGroup]:
    """Rows of both tables."""
    at_once = options.requests_at_once
    stories = [RequestGroup(requests, words) for words in options.words for requests in at_once]
    return stories + [RequestGroup(requests, 10, text=True) for requests in at_once if not options.no_text]


def row(group: RequestGroup, rounds: Sequence[Sequence[ObservedAnswer]]) -> dict[str, Any]:
    """Row of a table, over all rounds of a group of requests."""
    one = concurrent_result(group, rounds)
    return {
        "requests": one.requests,
        "words": one.words,
        "text": one.text,
        "tokens": one.tokens,
        "time_s": one.time_s.median,
        "tokens_per_s": one.tokens_per_s.median,
        "aggregate_tokens_per_s": one.aggregate_tokens_per_s.median,
        "aggregate_spread": [one.aggregate_tokens_per_s.low, one.aggregate_tokens_per_s.high],
        "ttft_p50_s": one.ttft_p50_s,
        "ttft_p99_s": one.ttft_p99_s,
        "itl_p50_s": one.itl_p50_s,
        "itl_p99_s": one.itl_p99_s,
    }


def measured(options: argparse.Namespace) -> Result:
    """Measure all groups of requests in turn."""
    first_words = numbers()
    where = {name: getattr(options, name) for name in ("stages", "threads", "backend", "speculate")}
    engine = Engine(options.model, **where)
    with asyncio.Runner() as runner:
        try:
            runner.run(engine.open())
            pinned = pin_stages(engine.stages, options.threads)
            asked = FreshOwners(engine)

            def answers(group: RequestGroup, _turn: int) -> list[ObservedAnswer]:
                return runner.run(ask_at_once(asked, group, first_words))

            found = interleave({group: partial(answers, group) for group in groups(options)}, options.rounds)
        finally:
            runner.run(engine.close())
    return {"rows": [row(group, rounds) for group, rounds in found.items()], "pinned": pinned}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    headings = (
        "requests", "words", "tokens", "time s", "token/s", "together", "TTFT p50/p99 s", "ITL p50/p99 ms",
    )  # fmt: skip
    yield from table(headings, [_cells(one) for one in result["rows"]])


def _cells(one: Result) -> tuple[str, ...]:
    return (
        str(one["requests"]),
        "text" if one["text"] else str(one["words"]),
        f"{one['tokens']:.1f}",
        f"{one['time_s']:.2f}",
        f"{one['tokens_per_s']:.1f}",
        spread_text(one["aggregate_tokens_per_s"], one["aggregate_spread"], ".4g"),
        f"{one['ttft_p50_s']:.2f} / {one['ttft_p99_s']:.2f}",
        f"{one['itl_p50_s'] * 1e3:.1f} / {one['itl_p99_s'] * 1e3:.1f}",
    )


if __name__ == "__main__":
    script("concurrency", parse, measured, lines)
