"""Rates, the history and the trip of a token, from readings of an engine's sums."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgepp.coordinator.rates import HISTORY_S, READING_S, Rates, trip_of
from edgepp.coordinator.recent_events import MAX_EVENTS, RecentEvents
from edgepp.engine.ring import StageInfo, StageStats
from edgepp.engine.step_totals import StepTotals
from edgepp.events import NodeChanged
from edgepp.layer_range import LayerRange


def stage(index: int, hop_s: float, back_s: float = 0.0) -> StageInfo:
    layers = LayerRange(index, index + 1)
    return StageInfo(index, layers, f"node{index}", "", 1, "onnx", "cpu", 64, 4096, 0.1, 0.1, hop_s, back_s)


class Pipelines:
    """A pipeline manager whose engine computes what the test says."""

    def __init__(self) -> None:
        self.stages = (stage(0, 0.001), stage(1, 0.003, back_s=0.001))
        self.totals, self.received = StepTotals(2), 0
        self.pipeline: Any = SimpleNamespace(stages=self.stages, engine=self)

    @property
    def step_sums(self) -> Any:
        return self.totals.read()

    @property
    def stage_stats(self) -> list[StageStats]:
        return [StageStats(0, 0, 0, 0, received_bytes=self.received)] * 2

    def decode(self, steps: int, compute_s: float = 0.02) -> None:
        for _ in range(steps):
            self.totals.add_step(1, (compute_s, 2 * compute_s), (0.0, 0.005), 3 * compute_s + 0.009, decodes=True)
            self.totals.add_head(0.002)
            self.totals.add_tokens(1)
            self.received += 1000


def run(rates: Rates, pipelines: Pipelines, seconds: float, steps_per_reading: int, from_s: float = 100.0) -> float:
    """Tick for ``seconds`` from ``from_s`` on; returns when that ends."""
    for number in range(round(seconds / READING_S) + 1):
        rates.tick(from_s + number * READING_S)
        pipelines.decode(steps_per_reading)
    return from_s + seconds


def test_rates_are_means_over_the_last_second() -> None:
    pipelines = Pipelines()
    rates = Rates(pipelines)  # type: ignore[arg-type]
    assert (rates.to_json()["tokens_per_s"], rates.busy(0), rates.trip) == (0.0, None, None)
    run(rates, pipelines, 3.0, 2)
    told = rates.to_json()
    assert told["tokens_per_s"] == pytest.approx(2 / READING_S)
    assert told["steps_per_s"] == pytest.approx(2 / READING_S)
    assert rates.busy(0) == pytest.approx(0.02 * 2 / READING_S)
    assert rates.busy(1) == pytest.approx(0.04 * 2 / READING_S)
    assert rates.busy(2) is None
    assert rates.received_bytes_per_s(1) == pytest.approx(2000 / READING_S)


def test_the_trip_says_where_a_step_spent_its_time_and_stays_when_the_answer_has_ended() -> None:
    pipelines = Pipelines()
    rates = Rates(pipelines)  # type: ignore[arg-type]
    end_s = run(rates, pipelines, 2.0, 1)
    trip = rates.trip
    assert trip is not None
    assert trip["live"]
    assert [one["compute_s"] for one in trip["stages"]] == pytest.approx([0.02, 0.04])
    assert [one["queue_s"] for one in trip["stages"]] == pytest.approx([0.0, 0.005])
    assert [one["wire_s"] for one in trip["stages"]] == pytest.approx([0.001, 0.002])
    assert trip["return_s"] == pytest.approx(0.001)
    assert trip["head_s"] == pytest.approx(0.002)
    parts = [one[part] for one in trip["stages"] for part in ("wire_s", "queue_s", "compute_s")]
    assert sum(parts) + trip["return_s"] + trip["head_s"] == pytest.approx(trip["step_s"])
    run(rates, pipelines, 2.0, 0, end_s + READING_S)
    still = rates.trip
    assert still is not None
    assert not still["live"]
    assert still["stages"] == trip["stages"]


def test_another_pipeline_begins_anew_and_none_gives_zero() -> None:
    pipelines = Pipelines()
    rates = Rates(pipelines)  # type: ignore[arg-type]
    end_s = run(rates, pipelines, 2.0, 1)
    pipelines.pipeline = None
    rates.tick(end_s + READING_S)
    assert rates.to_json()["tokens_per_s"] == 0.0
    pipelines.stages = (stage(0, 0.001, back_s=0.0005),)
    pipelines.totals = StepTotals(1)
    pipelines.pipeline = SimpleNamespace(stages=pipelines.stages, engine=pipelines)
    rates.tick(end_s + 2 * READING_S)
    rates.tick(end_s + 3 * READING_S)
    assert rates.trip is None
    assert rates.to_json()["tokens_per_s"] == 0.0


def test_the_history_has_one_mean_per_two_seconds() -> None:
    pipelines = Pipelines()
    rates = Rates(pipelines)  # type: ignore[arg-type]
    run(rates, pipelines, 3 * HISTORY_S, 1)
    assert rates.to_json()["history"] == pytest.approx([1 / READING_S] * 3)


def test_links_without_a_measured_way_share_the_time_evenly() -> None:
    totals = StepTotals(1)
    before = totals.read()
    totals.add_step(1, (0.01,), (), 0.03, decodes=True)
    trip = trip_of(before, totals.read(), [stage(0, 0.0)])
    assert trip["stages"][0]["wire_s"] == trip["return_s"] == pytest.approx(0.01)
    assert (trip["head_s"], trip["step_s"]) == (0.0, pytest.approx(0.03))


def test_the_newest_events_are_kept_and_all_are_passed_on() -> None:
    passed: list[Any] = []
    events = RecentEvents(passed.append, lambda: 1_764_000_000.04)
    for number in range(MAX_EVENTS + 3):
        events(NodeChanged(f"mini{number}", "is suspect"))
    told = events.to_json()
    assert (len(told), len(passed)) == (MAX_EVENTS, MAX_EVENTS + 3)
    assert told[-1] == {"at_s": 1_764_000_000.0, "kind": "NodeChanged", "text": f"mini{MAX_EVENTS + 2} is suspect"}
