"""Requests at once: token/s for each, for all together, and how long people wait; the shape of the origin's tables.

    python bench/requests.py --model smollm2-135m --stages 2 --threads 1 --requests 1,4,16 --words 25,100

Every request asks for a story of N words; then, as a second table, for a title of a text of 484 words. METHODOLOGY.md
defines the numbers. Rounds go through all settings in turn.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from measure import Arguments, count, report, say, script, share_cpus
from sides import pin

from edgepp import Engine, backend
from edgepp.benchmark.prompts import numbers
from edgepp.benchmark.workload import FreshOwners, ObservedAnswer, RequestGroup, ask_at_once, concurrent_result


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name, hub repository or folder (%(default)s)")
    parser.add_argument("--stages", type=count, default=2, help="stage processes (%(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="compute threads a stage (%(default)s)")
    parser.add_argument("--requests", type=counts, default=[1, 2, 4, 8, 16], help="requests at once (1,2,4,8,16)")
    parser.add_argument("--words", type=counts, default=[25, 50, 100], help="words of a story (25,50,100)")
    parser.add_argument("--no-text", action="store_true", help="leave out the table with a text of 484 words")
    parser.add_argument("--rounds", type=count, default=3, help="measured rounds, after one to warm up (%(default)s)")
    parser.add_argument("--backend", choices=backend.NAMES, default="auto", help="(%(default)s)")
    parser.add_argument("--speculate", default="off", help="what guesses tokens ahead, as in chat (%(default)s)")
    return parser.parse_args()


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas, from a command line."""
    return [count(part) for part in text.split(",")]


def settings(options: argparse.Namespace) -> list[RequestGroup]:
    """The rows of both tables."""
    stories = [RequestGroup(requests, words) for words in options.words for requests in options.requests]
    return stories + [RequestGroup(requests, 10, text=True) for requests in options.requests if not options.no_text]


def row(setting: RequestGroup, rounds: Sequence[Sequence[ObservedAnswer]]) -> dict[str, Any]:
    """A table's row from all rounds of a setting."""
    one = concurrent_result(setting, rounds)
    return {
        "requests": one.requests,
        "words": one.words,
        "text": one.text,
        "tokens": one.tokens,
        "time_s": one.time_s.median,
        "tok_s": one.tok_s.median,
        "aggregate_tok_s": one.aggregate_tok_s.median,
        "aggregate_spread": [one.aggregate_tok_s.low, one.aggregate_tok_s.high],
        "ttft_p50_s": one.ttft_p50_s,
        "ttft_p99_s": one.ttft_p99_s,
        "itl_p50_s": one.itl_p50_s,
        "itl_p99_s": one.itl_p99_s,
    }


async def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All settings, in turn."""
    rows = settings(options)
    found: list[list[list[ObservedAnswer]]] = [[] for _ in rows]
    spread = share_cpus(options.stages, options.threads)
    first_words = numbers()
    where = {name: getattr(options, name) for name in ("stages", "threads", "backend", "speculate")}
    async with Engine(options.model, **where) as engine:
        for stage, cpus in zip(engine.stages, spread or (), strict=False):
            pin(stage.pid, cpus)
        asked = FreshOwners(engine)
        for number in range(options.rounds + 1):
            for setting, waits in zip(rows, found, strict=True):
                came = await ask_at_once(asked, setting, first_words)
                if number:
                    waits.append(came)
            say(f"round {number} of {options.rounds}" if number else "warm")
    return {"rows": [row(setting, waits) for setting, waits in zip(rows, found, strict=True)], "pinned": spread}


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    yield "requests  words  tokens  time s  token/s  together   TTFT p50/p99 s    ITL p50/p99 ms"
    for one in result["rows"]:
        words = "text" if one["text"] else str(one["words"])
        yield (
            f"{one['requests']:8}  {words:>5}  {one['tokens']:6.1f}  {one['time_s']:6.2f}  {one['tok_s']:7.1f}"
            f"  {one['aggregate_tok_s']:8.1f}   {one['ttft_p50_s']:6.2f} / {one['ttft_p99_s']:<6.2f}"
            f"  {one['itl_p50_s'] * 1e3:6.1f} / {one['itl_p99_s'] * 1e3:.1f}"
        )


def main() -> None:
    """Measure and report."""
    options = parse()
    chosen = {name: value for name, value in vars(options).items() if name != "json"}
    chosen["requests_at_once"] = chosen.pop("requests")
    result = {"bench": "requests", **chosen, **asyncio.run(measured(options))}
    report(result, table(result), json_only=options.json)


if __name__ == "__main__":
    script(main)
