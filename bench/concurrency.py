"""Several requests at the same time: token rate per request and in all, and waiting times, as in the origin's tables.

    python -m bench.concurrency --model smollm2-135m --stages 1,2,4 --threads 1 --requests 1,8 --words 100 --no-text

Every request asks for a story of N words; in a second table, for a title of a text of 484 words. METHODOLOGY.md defines
the numbers. Each round measures all settings in turn, pipelines of several lengths too.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench.toolkit.figures import interleave, spread_text, table
from bench.toolkit.processors import pin_stages
from bench.toolkit.script import Result, ScriptArguments, counts, script
from edgepp import Engine
from edgepp.benchmark.prompts import numbers
from edgepp.benchmark.report import Spread
from edgepp.benchmark.workload import (
    DecodeStep,
    FreshOwners,
    ObservedAnswer,
    RequestGroup,
    aggregate_rates,
    ask_at_once,
    concurrent_result,
)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.shared("model", "threads", "backend", rounds=3)
    parser.add_argument(
        "--stages",
        metavar="N,...",
        type=counts,
        default=[2],
        help="stage processes, of one pipeline for each number (2)",
    )
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
    """Rows of both tables, for each pipeline."""
    at_once = options.requests_at_once
    stories = [RequestGroup(requests, words) for words in options.words for requests in at_once]
    return stories + [RequestGroup(requests, 10, text=True) for requests in at_once if not options.no_text]


Rounds = Sequence[Sequence[ObservedAnswer]]
"""The answers of each round."""


def row(stages: int, group: RequestGroup, rounds: Rounds, first: Rounds) -> dict[str, Any]:
    """Row of a table, over all rounds of a group; ``first`` has the rounds of that group over the first pipeline."""
    one = concurrent_result(group, rounds)
    ratio = Spread.of_ratios(aggregate_rates(rounds), aggregate_rates(first))
    return {
        "stages": stages,
        "requests": one.requests,
        "words": one.words,
        "text": one.text,
        "tokens": one.tokens,
        "time_s": one.time_s.median,
        "tokens_per_s": one.tokens_per_s.median,
        "aggregate_tokens_per_s": one.aggregate_tokens_per_s.median,
        "aggregate_spread": [one.aggregate_tokens_per_s.low, one.aggregate_tokens_per_s.high],
        "ratio": ratio.median,
        "ratio_spread": [ratio.low, ratio.high],
        "ttft_p50_s": one.ttft_p50_s,
        "ttft_p99_s": one.ttft_p99_s,
        "itl_p50_s": one.itl_p50_s,
        "itl_p99_s": one.itl_p99_s,
        "step_ms": mean_step([answer.step for answers in rounds for answer in answers]),
    }


def mean_step(steps: Sequence[DecodeStep]) -> dict[str, Any]:
    """Mean parts of a decode step: how long each stage computed, the rest of the ring, and the coordinator."""
    return {
        "stages": [statistics.fmean(parts) for parts in zip(*(step.stages_ms for step in steps), strict=True)],
        "wire": statistics.fmean(step.wire_ms for step in steps),
        "coordinator": statistics.fmean(step.coordinator_ms for step in steps),
    }


def measured(options: argparse.Namespace) -> Result:
    """Measure all groups of requests over all pipelines in turn."""
    first_words = numbers()
    where = {name: getattr(options, name) for name in ("threads", "backend", "speculate")}
    engines = {stages: Engine(options.model, stages=stages, **where) for stages in options.stages}
    cases = [(stages, group) for group in groups(options) for stages in options.stages]
    with asyncio.Runner() as runner:
        try:
            for engine in engines.values():
                runner.run(engine.open())
            pinned = [pin_stages(engine.stages, options.threads) for engine in engines.values()]
            asked = {stages: FreshOwners(engine) for stages, engine in engines.items()}

            def answers(case: tuple[int, RequestGroup], _turn: int) -> list[ObservedAnswer]:
                return runner.run(ask_at_once(asked[case[0]], case[1], first_words))

            found = interleave({case: partial(answers, case) for case in cases}, options.rounds)
        finally:
            for engine in engines.values():
                runner.run(engine.close())
    first = options.stages[0]
    return {"rows": [row(*case, rounds, found[first, case[1]]) for case, rounds in found.items()], "pinned": pinned}


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    headings = (
        "stages", "requests", "words", "tokens", "time s", "token/s", "together", "ratio", "TTFT p50/p99 s",
        "ITL p50/p99 ms", "step ms: stages", "wire", "coordinator",
    )  # fmt: skip
    yield from table(headings, [_cells(one) for one in result["rows"]])


def _cells(one: Result) -> tuple[str, ...]:
    step = one["step_ms"]
    return (
        str(one["stages"]),
        str(one["requests"]),
        "text" if one["text"] else str(one["words"]),
        f"{one['tokens']:.1f}",
        f"{one['time_s']:.2f}",
        f"{one['tokens_per_s']:.1f}",
        spread_text(one["aggregate_tokens_per_s"], one["aggregate_spread"], ".4g"),
        spread_text(one["ratio"], one["ratio_spread"]),
        f"{one['ttft_p50_s']:.2f} / {one['ttft_p99_s']:.2f}",
        f"{one['itl_p50_s'] * 1e3:.1f} / {one['itl_p99_s'] * 1e3:.1f}",
        " + ".join(f"{ms:.1f}" for ms in step["stages"]),
        f"{step['wire']:.1f}",
        f"{step['coordinator']:.1f}",
    )


if __name__ == "__main__":
    script("concurrency", parse, measured, lines)
