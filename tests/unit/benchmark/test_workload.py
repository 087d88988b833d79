"""The order of a measurement's questions, and what becomes of those that cannot be asked. Nothing is timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgepp.benchmark import baselines
from edgepp.benchmark.measurement import FULL, QUICK, BenchmarkSettings, Measurement
from edgepp.benchmark.report import BenchmarkReport
from edgepp.engine.request import GenerateOptions
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError, PeerLost, StageLost
from tests.unit.benchmark.filled_report import replaced, timing

SHORT = BenchmarkSettings(rounds=2, warm=False, prompt_words=5, answer=9, requests=(1, 4), words=(25,))


# The order of things, with answers that cost nothing


@dataclass
class Given:
    """An answer of a model that is asked nothing."""

    options: GenerateOptions
    finish_reason: str = "length"
    prompt_tokens: int = 10
    token_ids: list[int] = field(default_factory=list)
    timing: Timing = field(default_factory=lambda: timing(0.5, 1.5, 9))

    async def whole(self) -> Given:
        async for _ in self:
            continue
        return self

    async def __aiter__(self) -> AsyncIterator[str]:
        for token in range(self.options.max_tokens):
            self.token_ids.append(token)
            yield "x"


class Model:
    """Answers, until it has been asked so often; loses a stage at its question number ``loses``."""

    def __init__(self, until: int = 1000, context: int = 1000, loses: int = 0) -> None:
        self.prompts: list[str] = []
        self.opened = 0
        self._until = until
        self._context = context
        self._loses = loses

    async def open(self) -> None:
        self.opened += 1

    def ask(self, prompt: Any, options: GenerateOptions | None = None, *, raw: bool = False) -> Any:
        self.prompts.append(prompt)
        if len(self.prompts) > self._until:
            raise PeerLost("the coordinator is gone")
        if len(self.prompts) == self._loses:
            raise StageLost("stage 1 stopped answering")
        assert options is not None
        assert options.ignore_eos
        short = len(str(prompt).split()) > self._context
        return Given(options, finish_reason="context" if short else "length")


def measure(
    model: Model, alone: Model | None = None, settings: BenchmarkSettings = SHORT
) -> tuple[BenchmarkReport, list[str]]:
    report = replaced(single=None, alone=None, requests=[], codecs=[], chosen=[])
    report.settings = {"rounds": 2, "warm": False, "single": alone is not None}
    steps: list[str] = []

    def report_progress(done: int, total: int, what: str) -> None:
        assert done < total
        steps.append(what)

    bench = Measurement("no-such-model", settings, report, report_progress)
    bench._measure_codecs = lambda: None  # type: ignore[method-assign]  # timed; has tests of its own
    try:
        asyncio.run(bench.run(model, alone))
    except EdgeppError as error:
        report.partial = str(error)
    return report, steps


def test_sides_are_asked_in_turn_and_rows_round_after_round() -> None:
    model, alone = Model(), Model()
    report, steps = measure(model, alone)
    assert steps[:4] == [
        "one request, warm-up",
        "one process, warm-up",
        "one request, round 1 of 2",
        "one process, round 1 of 2",
    ]
    assert steps[6:10] == [
        "1 at once, 25 words, round 1 of 2",
        "4 at once, 25 words, round 1 of 2",
        "1 at once, a title, round 1 of 2",
        "4 at once, a title, round 1 of 2",
    ]
    assert len(steps) == 6 + 8
    assert len(model.prompts) == len(set(model.prompts)) == 3 + 2 * (1 + 4 + 1 + 4)
    assert alone.prompts == model.prompts[:3]
    assert [row.tokens for row in report.requests] == [29, 29, 18, 18]
    assert report.single is not None
    assert report.single.decode_tokens_per_s.n == 2


def test_a_row_that_does_not_fit_the_context_is_left_out() -> None:
    report, _ = measure(Model(context=100))
    assert [row.text for row in report.requests] == [False, False]
    assert len(report.left_out) == 2
    assert "do not fit the model's context" in report.left_out[0]


@pytest.mark.parametrize("question", [2, 6])
def test_a_stage_that_is_lost_on_a_busy_machine_costs_one_more_try(question: int) -> None:
    model = Model(loses=question)
    report, _ = measure(model)
    assert not report.partial
    assert model.opened == 1
    assert "stage 1 stopped answering" in report.left_out[0]
    assert len(report.requests) == 4
    assert report.single is not None
    assert report.single.decode_tokens_per_s.n == 2


def test_what_was_measured_before_a_loss_stands_in_the_report() -> None:
    report, _ = measure(Model(until=4))
    assert report.partial == "the coordinator is gone"
    assert report.single is not None
    assert [row.name for row in report.requests] == ["1 at once, 25 words"]


def test_the_default_is_the_origins_table() -> None:
    rows = FULL.rows()
    assert {(row.requests, row.words) for row in rows if not row.text} == set(baselines.STORIES)
    assert {row.requests for row in rows if row.text} == set(baselines.TITLES)
    assert {(row.requests, row.words) for row in QUICK.rows() if not row.text} < set(baselines.STORIES)
