"""Questions to a cluster or a pipeline, and how long their answers took."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from edgepp.api import Answer, Engine, Prompt
from edgepp.benchmark import prompts
from edgepp.benchmark.report import NAMES, ConcurrentResult, SingleResult, Spread
from edgepp.engine.request import GenerateOptions, Timing
from edgepp.errors import UsageError

TOKENS_A_WORD = 1.15
"""Tokens per word of a story, as the origin's model took them."""
TITLE_TOKENS = 18

R = TypeVar("R")


class Askable(Protocol):
    """An open ``Connection``, or ``FreshOwners``."""

    def ask(self, prompt: Prompt, options: GenerateOptions | None = None, *, raw: bool = False) -> Answer:
        """See ``Engine.ask``."""

    async def open(self) -> None:
        """See ``Engine.open``: what was lost is opened again."""


class FreshOwners:
    """An engine of which each question has another owner, so that nothing asked before helps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._owners = itertools.count()

    def ask(self, prompt: Prompt, options: GenerateOptions | None = None, *, raw: bool = False) -> Answer:
        """See ``Engine.ask``."""
        return self._engine.ask(prompt, options, raw=raw, owner=str(next(self._owners)))

    async def open(self) -> None:
        """See ``Engine.open``."""
        await self._engine.open()


@dataclass(frozen=True)
class RequestGroup:
    """So many requests at once, each of a story of so many words, or of a title of a text."""

    requests: int
    words: int
    text: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of each answer."""
        return TITLE_TOKENS if self.text else round(self.words * TOKENS_A_WORD)

    def prompt(self, number: int) -> str:
        """A prompt that begins with ``number``."""
        return prompts.title(number) if self.text else prompts.story(number, self.words)


@dataclass(frozen=True)
class SingleRun:
    """One request alone, on the clock of the process that generates."""

    prompt_tokens: int
    timing: Timing


@dataclass(frozen=True)
class ObservedAnswer:
    """The answer to one of several requests, as its asker saw it; times in seconds from the question."""

    prompt_tokens: int
    reused: int
    tokens: int
    arrivals_s: tuple[float, ...]
    """When each piece of text came: a token, unless it takes several to make a character or they were guessed."""

    @property
    def time_s(self) -> float:
        """Seconds to the last token."""
        return self.arrivals_s[-1]

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between a piece and the next."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals_s)]


async def ask_alone(asked: Askable, number: int, words: int, tokens: int) -> SingleRun:
    """Ask for ``tokens`` tokens after a passage of ``words`` words.

    Raises:
        UsageError: they do not fit the model's context.
        EdgeppError: there is no answer.
    """
    options = GenerateOptions(max_tokens=tokens, ignore_eos=True)
    answer = await asked.ask(prompts.passage(number, words), options, raw=True).whole()
    _check(answer, tokens)
    return SingleRun(answer.prompt_tokens, answer.timing)


async def ask_at_once(asked: Askable, setting: RequestGroup, numbers: Iterator[int]) -> list[ObservedAnswer]:
    """Ask all requests of a setting at once and wait for the last token.

    Raises:
        UsageError: they do not fit the model's context.
        EdgeppError: an answer failed.
    """
    options = GenerateOptions(max_tokens=setting.tokens, ignore_eos=True)

    async def ask(prompt: str) -> ObservedAnswer:
        asked_s = time.perf_counter()
        answer = asked.ask(prompt, options)
        arrivals = [time.perf_counter() - asked_s async for _ in answer]
        _check(answer, setting.tokens)
        arrivals = arrivals or [time.perf_counter() - asked_s]
        return ObservedAnswer(answer.prompt_tokens, answer.timing.reused, len(answer.token_ids), tuple(arrivals))

    return await asyncio.gather(*(ask(setting.prompt(next(numbers))) for _ in range(setting.requests)))


def _check(answer: Answer, tokens: int) -> None:
    if answer.finish_reason != "length" or len(answer.token_ids) < tokens:
        raise UsageError(
            f"{answer.prompt_tokens} + {tokens} tokens do not fit the model's context", "ask for fewer words"
        )


def single_result(runs: Sequence[SingleRun]) -> SingleResult:
    """The rates of one request, from all rounds."""
    times = [run.timing for run in runs]
    step = decode_step(middle_decode(times, lambda timing: timing.decode_tokens_per_s))

    def spread(rate: Callable[[SingleRun], float]) -> Spread:
        return Spread.of([rate(run) for run in runs])

    return SingleResult(
        prompt_tokens=round(statistics.median(run.prompt_tokens for run in runs)),
        tokens=times[0].tokens,
        reused=sum(timing.reused for timing in times),
        guessed=sum(timing.guessed for timing in times),
        right=sum(timing.right for timing in times),
        decode_tokens_per_s=spread(lambda run: run.timing.decode_tokens_per_s),
        e2e_tokens_per_s=spread(lambda run: run.timing.e2e_tokens_per_s),
        prefill_tokens_per_s=spread(lambda run: (run.prompt_tokens - run.timing.reused) / run.timing.ttft_s),
        ttft_s=spread(lambda run: run.timing.ttft_s),
        stages_ms=step.stages_ms,
        wire_ms=step.wire_ms,
        coordinator_ms=step.coordinator_ms,
    )


def ratio(over: Sequence[SingleRun], under: Sequence[SingleRun]) -> dict[str, Spread]:
    """Each of a single request's figures, one side's over the other's, formed within a round."""
    sides = [[single_result([run]) for run in runs] for runs in (over, under)]
    return {name: Spread.of_ratios(*([getattr(one, name).median for one in side] for side in sides)) for name in NAMES}


@dataclass(frozen=True)
class DecodeStep:
    """Where the time of one decode step went, in milliseconds; nothing where guesses make steps uncountable."""

    stages_ms: tuple[float, ...] = ()
    """Each stage's own computing."""
    wire_ms: float = 0.0
    """The way round less that computing: codec, sockets, wake-ups and queues."""
    coordinator_ms: float = 0.0
    """The rest: embedding, norm, head, sampling."""


def decode_step(timing: Timing) -> DecodeStep:
    """The mean decode step of one answer."""
    steps = timing.tokens - 1
    if timing.guessed or steps < 1:
        return DecodeStep()
    total_ms = (timing.last_token_s - timing.first_token_s) * 1e3 / steps
    stages_ms = tuple(times.decode_s * 1e3 / steps for times in timing.stages)
    wire_ms = sum(times.wire_s for times in timing.stages) * 1e3 / steps
    return DecodeStep(stages_ms, wire_ms, total_ms - wire_ms - sum(stages_ms))


def middle_decode(rounds: Sequence[R], decode_tokens_per_s: Callable[[R], float]) -> R:
    """The round of middle decode rate."""
    return sorted(rounds, key=decode_tokens_per_s)[len(rounds) // 2]


def concurrent_result(setting: RequestGroup, rounds: Sequence[Sequence[ObservedAnswer]]) -> ConcurrentResult:
    """A table's row from all rounds of a setting."""
    waits = [wait for waits in rounds for wait in waits]
    firsts = [wait.arrivals_s[0] for wait in waits]
    gaps = [gap for wait in waits for gap in wait.gaps_s] or [0.0]
    return ConcurrentResult(
        requests=setting.requests,
        words=setting.words,
        text=setting.text,
        prompt_tokens=statistics.fmean(wait.prompt_tokens for wait in waits),
        reused=statistics.fmean(wait.reused for wait in waits),
        tokens=statistics.fmean(wait.tokens for wait in waits),
        time_s=Spread.of([statistics.fmean(wait.time_s for wait in waits) for waits in rounds]),
        tokens_per_s=Spread.of([statistics.fmean(wait.tokens / wait.time_s for wait in waits) for waits in rounds]),
        aggregate_tokens_per_s=Spread.of(
            [sum(wait.tokens for wait in waits) / max(wait.time_s for wait in waits) for waits in rounds]
        ),
        ttft_p50_s=percentile(firsts, 50),
        ttft_p99_s=percentile(firsts, 99),
        itl_p50_s=percentile(gaps, 50),
        itl_p99_s=percentile(gaps, 99),
    )


def percentile(values: Sequence[float], share: int) -> float:
    """The smallest value that ``share`` in a hundred do not exceed."""
    return sorted(values)[max(0, -(-len(values) * share // 100) - 1)]
