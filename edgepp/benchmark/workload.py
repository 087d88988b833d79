"""Questions to a cluster or a pipeline, and the times of the answers."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from edgepp.benchmark import prompts
from edgepp.benchmark.report import NAMES, ConcurrentResult, SingleResult, Spread
from edgepp.engine.request import GenerateOptions
from edgepp.engine.timing import Timing
from edgepp.errors import UsageError
from edgepp.python_api import Answer, Engine, Question

TOKENS_PER_WORD = 1.15
"""Tokens per word of a story, for the origin's model."""
TITLE_TOKENS = 18

R = TypeVar("R")


class Askable(Protocol):
    """Interface of an open ``Connection`` and of ``FreshOwners``."""

    def ask(self, prompt: Question, options: GenerateOptions | None = None, *, raw: bool = False) -> Answer:
        """Ask a question, as ``Engine.ask`` does."""

    async def open(self) -> None:
        """Open again what was lost, as ``Engine.open`` does."""


class FreshOwners:
    """An engine that asks each question as another owner, so that no cached prompt helps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._owners = itertools.count()

    def ask(self, prompt: Question, options: GenerateOptions | None = None, *, raw: bool = False) -> Answer:
        """Ask a question, as ``Engine.ask`` does."""
        return self._engine.ask(prompt, options, raw=raw, owner=str(next(self._owners)))

    async def open(self) -> None:
        """Open the engine."""
        await self._engine.open()


@dataclass(frozen=True)
class RequestGroup:
    """``requests`` requests at the same time, each for a story of ``words`` words, or for the title of a text."""

    requests: int
    words: int
    text: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of each answer."""
        return TITLE_TOKENS if self.text else round(self.words * TOKENS_PER_WORD)

    def prompt(self, number: int) -> str:
        """The prompt with ``number``."""
        return prompts.title(number) if self.text else prompts.story(number, self.words)


@dataclass(frozen=True)
class SingleRun:
    """Timing of a single request, on the clock of the process that generates."""

    prompt_tokens: int
    timing: Timing


@dataclass(frozen=True)
class DecodeStep:
    """Parts of one decode step in milliseconds; all 0 if tokens were guessed ahead (no count of steps)."""

    stages_ms: tuple[float, ...] = ()
    """Computing time of each stage."""
    wire_ms: float = 0.0
    """Round trip without that computing: codec, sockets, wake-ups and queues."""
    coordinator_ms: float = 0.0
    """The rest: embedding, norm, head, sampling."""


@dataclass(frozen=True)
class ObservedAnswer:
    """Answer to one of several requests, as the client sees it; times are seconds from the question."""

    prompt_tokens: int
    reused: int
    tokens: int
    arrivals_s: tuple[float, ...]
    """Arrival of each piece of text: one token, or several for one character or after guessing ahead."""
    step: DecodeStep = DecodeStep()
    """Parts of its mean decode step, where the coordinator is in this process."""

    @property
    def time_s(self) -> float:
        """Seconds to the last token."""
        return self.arrivals_s[-1]

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between consecutive pieces."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals_s)]


async def ask_alone(target: Askable, number: int, words: int, tokens: int) -> SingleRun:
    """Ask for ``tokens`` tokens after a passage of ``words`` words.

    Raises:
        UsageError: prompt and answer do not fit the model's context.
        EdgeppError: the answer failed.
    """
    options = GenerateOptions(max_tokens=tokens, ignore_eos=True)
    answer = await target.ask(prompts.passage(number, words), options, raw=True).whole()
    _check(answer, tokens)
    return SingleRun(answer.prompt_tokens, answer.timing)


async def ask_at_once(target: Askable, group: RequestGroup, numbers: Iterator[int]) -> list[ObservedAnswer]:
    """Ask all requests of ``group`` at the same time and wait for the last token.

    Raises:
        UsageError: prompt and answer do not fit the model's context.
        EdgeppError: an answer failed.
    """
    options = GenerateOptions(max_tokens=group.tokens, ignore_eos=True)

    async def ask(prompt: str) -> ObservedAnswer:
        asked_s = time.perf_counter()
        answer = target.ask(prompt, options)
        arrivals = [time.perf_counter() - asked_s async for _ in answer]
        _check(answer, group.tokens)
        arrivals = arrivals or [time.perf_counter() - asked_s]
        reused, step = answer.timing.reused, decode_step(answer.timing)
        return ObservedAnswer(answer.prompt_tokens, reused, len(answer.token_ids), tuple(arrivals), step)

    return await asyncio.gather(*(ask(group.prompt(next(numbers))) for _ in range(group.requests)))


def _check(answer: Answer, tokens: int) -> None:
    if answer.finish_reason != "length" or len(answer.token_ids) < tokens:
        raise UsageError(
            f"{answer.prompt_tokens} + {tokens} tokens do not fit the model's context", "ask for fewer words"
        )


def single_result(runs: Sequence[SingleRun]) -> SingleResult:
    """Rates of one request, over all rounds."""
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
    """Ratio of each figure in NAMES, ``over`` / ``under``, formed within a round."""
    sides = [[single_result([run]) for run in runs] for runs in (over, under)]
    return {name: Spread.of_ratios(*([getattr(one, name).median for one in side] for side in sides)) for name in NAMES}


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
    """The round with the median decode rate."""
    return sorted(rounds, key=decode_tokens_per_s)[len(rounds) // 2]


def concurrent_result(group: RequestGroup, rounds: Sequence[Sequence[ObservedAnswer]]) -> ConcurrentResult:
    """Row of a table, over all rounds of ``group``."""
    answers = [answer for answers in rounds for answer in answers]
    firsts = [answer.arrivals_s[0] for answer in answers]
    gaps = [gap for answer in answers for gap in answer.gaps_s] or [0.0]
    return ConcurrentResult(
        requests=group.requests,
        words=group.words,
        text=group.text,
        prompt_tokens=statistics.fmean(answer.prompt_tokens for answer in answers),
        reused=statistics.fmean(answer.reused for answer in answers),
        tokens=statistics.fmean(answer.tokens for answer in answers),
        time_s=Spread.of([statistics.fmean(answer.time_s for answer in answers) for answers in rounds]),
        tokens_per_s=Spread.of(
            [statistics.fmean(answer.tokens / answer.time_s for answer in answers) for answers in rounds]
        ),
        aggregate_tokens_per_s=Spread.of(aggregate_rates(rounds)),
        ttft_p50_s=percentile(firsts, 50),
        ttft_p99_s=percentile(firsts, 99),
        itl_p50_s=percentile(gaps, 50),
        itl_p99_s=percentile(gaps, 99),
    )


def aggregate_rates(rounds: Sequence[Sequence[ObservedAnswer]]) -> list[float]:
    """Tokens per second of all answers of each round together, until the last one's last token."""
    return [sum(answer.tokens for answer in answers) / max(answer.time_s for answer in answers) for answers in rounds]


def percentile(values: Sequence[float], share: int) -> float:
    """Percentile: the smallest of ``values`` that ``share`` percent of them do not exceed."""
    return sorted(values)[max(0, -(-len(values) * share // 100) - 1)]
