"""Order of all measurements. The report has every result as soon as it is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from edgepp.benchmark import hidden_states
from edgepp.benchmark.baselines import RATES_MBIT_PER_S
from edgepp.benchmark.prompts import numbers
from edgepp.benchmark.report import ALONE, BenchmarkReport
from edgepp.benchmark.workload import (
    Askable,
    ObservedAnswer,
    RequestGroup,
    SingleRun,
    ask_alone,
    ask_at_once,
    concurrent_result,
    ratio,
    single_result,
)
from edgepp.errors import ModelError, StageFault, StageLost, UsageError

CODEC_ROUNDS = 5

T = TypeVar("T")

ReportProgress = Callable[[int, int, str], None]
"""Called with the number of finished steps, the number of all steps, and the name of the next step."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """Amount of work of a measurement."""

    rounds: int
    warm: bool
    """Whether each row of a table has a warm-up round; the single request always has one."""
    prompt_words: int
    answer: int
    requests: tuple[int, ...] = (1, 2, 4)
    words: tuple[int, ...] = (25, 50, 100, 400, 800)
    title: bool = True

    def rows(self) -> list[RequestGroup]:
        """The rows of both tables."""
        stories = [RequestGroup(requests, words) for requests in self.requests for words in self.words]
        return stories + [RequestGroup(requests, 10, text=True) for requests in self.requests if self.title]


FULL = BenchmarkSettings(rounds=3, warm=True, prompt_words=400, answer=128)
QUICK = BenchmarkSettings(rounds=2, warm=False, prompt_words=100, answer=48, words=(25, 100))


class Measurement:
    """One measurement of a cluster or pipeline."""

    def __init__(
        self, model: str, settings: BenchmarkSettings, report: BenchmarkReport, report_progress: ReportProgress
    ) -> None:
        self._model = model
        self._settings = settings
        self._report = report
        self._report_progress = report_progress
        self._numbers = numbers()
        self._done = 0
        self._sides = 1

    async def run(
        self, target: Askable, alone: Askable | None, layouts: Mapping[str, Askable] = MappingProxyType({})
    ) -> None:
        """Measure everything; ``alone`` is the model in one process of this machine, ``layouts`` are other pipelines.

        Raises:
            EdgeppError: an answer failed; the report has the results until then.
        """
        began_s = time.monotonic()
        self._sides = 1 + (alone is not None) + len(layouts)
        try:
            await self._measure_single(target, alone, layouts)
            await self._measure_concurrent(target)
            await asyncio.to_thread(self._measure_codecs)
        finally:
            self._report.took_s = time.monotonic() - began_s

    async def _measure_single(self, target: Askable, alone: Askable | None, layouts: Mapping[str, Askable]) -> None:
        """Measure one request: a warm-up round, then the rounds, all sides in turn with the same prompt."""
        chosen = self._settings
        sides = {"one request": target} | ({ALONE: alone} if alone is not None else {}) | dict(layouts)
        runs: dict[str, list[SingleRun]] = {name: [] for name in sides}
        for turn in range(chosen.rounds + 1):
            number = next(self._numbers)
            for name, side in sides.items():
                self._step(f"{name}, round {turn} of {chosen.rounds}" if turn else f"{name}, warm-up")
                ask = partial(ask_alone, side, number, chosen.prompt_words, chosen.answer)
                try:
                    run = await self._with_retry(side, name, ask)
                except UsageError as error:  # the prompt is this measurement's own, so its hint would not help
                    error.hint = _shorter(chosen)
                    raise
                if turn:
                    runs[name].append(run)
            if turn:
                self._report.single = single_result(runs["one request"])
                self._report.layouts = {name: single_result(runs[name]) for name in layouts}
                if alone is not None:
                    self._report.alone = single_result(runs[ALONE])
                    self._report.ratio = ratio(runs["one request"], runs[ALONE])

    async def _measure_concurrent(self, target: Askable) -> None:
        """Measure all rows in turn, round after round; a row that the context cannot hold is left out."""
        rows = {row: list[list[ObservedAnswer]]() for row in self._settings.rows()}
        for turn in self._turns():
            for row in list(rows):
                what = "a title" if row.text else f"{row.words} words"
                self._step(f"{row.requests} at once, {what}, {turn}")
                try:
                    answers = await self._with_retry(target, what, partial(ask_at_once, target, row, self._numbers))
                except (UsageError, StageFault) as error:
                    del rows[row]
                    self._report.left_out.append(f"{row.requests} at once, {what}: {error}")
                    continue
                if turn != "warm-up":
                    rows[row].append(answers)
                self._report.requests = [concurrent_result(row, rounds) for row, rounds in rows.items() if rounds]

    async def _with_retry(self, target: Askable, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Run ``ask``, and once more if a stage was lost: on a busy machine a stage may exceed the time limit."""
        try:
            return await ask()
        except StageLost as error:
            self._report.left_out.append(f"first try of {what}: {error}")
            await target.open()
            return await ask()

    def _turns(self) -> Iterator[str]:
        if self._settings.warm:
            yield "warm-up"
        yield from (f"round {turn + 1} of {self._settings.rounds}" for turn in range(self._settings.rounds))

    def _measure_codecs(self) -> None:
        """Measure the codecs, and the choices of ``auto`` at the origin's rates and the measured rates of the links."""
        described = self._report.target
        measured = {round(stage.bytes_per_s / 125e3, 1) for stage in described.stages if stage.bytes_per_s}
        rates = sorted({*RATES_MBIT_PER_S, *(measured if described.kind == "cluster" else ())})
        data = {"noise": hidden_states.noise()}
        self._step(f"hidden states of {described.model}")
        try:
            data["real"] = hidden_states.real(self._model)
        except ModelError as error:
            self._report.left_out.append(f"real hidden states: {error}")
        for kind, states in data.items():
            self._step(f"codecs, {kind}")
            self._report.codecs += hidden_states.measure_codecs(kind, states, CODEC_ROUNDS)
            self._report.chosen += hidden_states.auto_choices(kind, states, rates)

    def _step(self, what: str) -> None:
        self._report_progress(self._done, self._steps, what)
        self._done += 1

    @property
    def _steps(self) -> int:
        chosen = self._settings
        return (chosen.rounds + 1) * self._sides + (chosen.rounds + chosen.warm) * len(chosen.rows()) + 3


def _shorter(settings: BenchmarkSettings) -> str:
    """What lets the single request of a measurement fit into a small context."""
    larger = "a model with a longer context, or a cluster served with a larger --context"
    if settings.prompt_words > QUICK.prompt_words:
        return f"add --quick, with shorter prompts and answers; or measure {larger}"
    return f"measure {larger}"
