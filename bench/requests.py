"""Requests at once: token/s for each, for all together, and how long people wait; the shape of the origin's tables.

    python bench/requests.py --model smollm2-135m --stages 2 --threads 1 --requests 1,4,16 --words 25,100

Every request asks for a story of N words; then, as a second table, for a title of a text of 484 words. METHODOLOGY.md
defines the numbers. Rounds go through all settings in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Arguments, count, report, say, script, share_cpus
from sides import pin

from edgepp import Engine, GenerateOptions, backend
from edgepp.errors import UsageError

TOKENS_A_WORD = 1.15
"""What the origin's model took for a word of a story."""
TEXT_WORDS = 484
TITLE_TOKENS = 18


@dataclass(frozen=True)
class Setting:
    """One row of a table."""

    requests: int
    words: int
    prompt: str
    tokens: int


@dataclass(frozen=True)
class Wait:
    """One request as its asker saw it, in seconds from the question."""

    tokens: int
    arrivals_s: tuple[float, ...]
    """Of each piece of text: a token, unless it takes several to make a character or they were guessed."""

    @property
    def gaps_s(self) -> list[float]:
        """Between a piece and the next."""
        return [b - a for a, b in itertools.pairwise(self.arrivals_s)]


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


def settings(options: argparse.Namespace) -> list[Setting]:
    """The rows of both tables."""
    rows = [
        Setting(requests, words, f"tell a story in {words} words", round(words * TOKENS_A_WORD))
        for words in options.words
        for requests in options.requests
    ]
    if options.no_text:
        return rows
    text = " ".join((Path(__file__).parent / "text.txt").read_text(encoding="utf-8").split()[:TEXT_WORDS])
    prompt = f"give a title for below text in 10 words: {text}"
    return rows + [Setting(requests, 10, prompt, TITLE_TOKENS) for requests in options.requests]


async def ask_at_once(engine: Engine, setting: Setting, owners: Iterator[int]) -> list[Wait]:
    """Ask all requests of a setting at once and wait for the last token.

    Each has an owner of its own, since what one owner asks twice need not be computed twice.
    """
    options = GenerateOptions(max_tokens=setting.tokens, ignore_eos=True)

    async def ask(owner: str) -> Wait:
        asked_s = time.perf_counter()
        answer = engine.ask(setting.prompt, options, owner=owner)
        arrivals = [time.perf_counter() - asked_s async for _ in answer]
        if answer.finish_reason != "length" or len(answer.token_ids) < setting.tokens:
            raise UsageError(f"{answer.prompt_tokens} + {setting.tokens} tokens do not fit the model's context")
        return Wait(len(answer.token_ids), tuple(arrivals or [time.perf_counter() - asked_s]))

    return await asyncio.gather(*(ask(str(next(owners))) for _ in range(setting.requests)))


def row(setting: Setting, rounds: Sequence[Sequence[Wait]]) -> dict[str, Any]:
    """A table's row from all rounds of a setting."""
    waits = [wait for waits in rounds for wait in waits]
    totals = [wait.arrivals_s[-1] for wait in waits]
    aggregate = [sum(wait.tokens for wait in waits) / max(wait.arrivals_s[-1] for wait in waits) for waits in rounds]
    firsts = [wait.arrivals_s[0] for wait in waits]
    gaps = [gap for wait in waits for gap in wait.gaps_s] or [0.0]
    return {
        "requests": setting.requests,
        "words": setting.words,
        "text": setting.tokens == TITLE_TOKENS and setting.words == 10,
        "tokens": statistics.fmean(wait.tokens for wait in waits),
        "time_s": statistics.fmean(totals),
        "tok_s": statistics.fmean(wait.tokens / wait.arrivals_s[-1] for wait in waits),
        "aggregate_tok_s": statistics.median(aggregate),
        "aggregate_spread": [min(aggregate), max(aggregate)],
        "ttft_p50_s": percentile(firsts, 50),
        "ttft_p99_s": percentile(firsts, 99),
        "itl_p50_s": percentile(gaps, 50),
        "itl_p99_s": percentile(gaps, 99),
    }


def percentile(values: Sequence[float], share: int) -> float:
    """The smallest value that ``share`` in a hundred do not exceed."""
    return sorted(values)[max(0, -(-len(values) * share // 100) - 1)]


async def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All settings, in turn."""
    rows = settings(options)
    found: list[list[list[Wait]]] = [[] for _ in rows]
    spread = share_cpus(options.stages, options.threads)
    owners = itertools.count()
    where = {name: getattr(options, name) for name in ("stages", "threads", "backend", "speculate")}
    async with Engine(options.model, **where) as engine:
        for stage, cpus in zip(engine.stages, spread or (), strict=False):
            pin(stage.pid, cpus)
        for number in range(options.rounds + 1):
            for setting, waits in zip(rows, found, strict=True):
                came = await ask_at_once(engine, setting, owners)
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
