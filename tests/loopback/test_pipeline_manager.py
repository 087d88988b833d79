from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edgepp.coordinator import pipeline_manager as module
from edgepp.coordinator.pipeline_manager import PipelineManager, PipelineOrder
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError, PlanError, StageLost
from edgepp.wire.transport import Address
from tests.waiting import PATIENCE_S, eventually

ONE = PipelineOrder(1, (Endpoint((Address("127.0.0.1", 1),)),))
TWO = PipelineOrder(2, (Endpoint((Address("127.0.0.1", 2),)),))


class FakePipeline:
    """Stands in for a pipeline of real stages, with opening under the test's control."""

    opened: list[FakePipeline]
    opening: threading.Event
    may_open: threading.Event

    def __init__(self, options: Any, frontend: Any = None) -> None:
        self.opening.set()
        assert self.may_open.wait(PATIENCE_S)
        self.options = options
        self.endpoints = options.endpoints
        self.stages = ("stage 0 (layers 0-3) on node mini",)
        self.told: EdgeppError | None = None
        self.lost: EdgeppError | None = None
        self.closed = False
        self.engine = self
        self.opened.append(self)

    def close(self, reason: EdgeppError | None = None) -> None:
        self.closed = True
        self.told = self.told or reason


@pytest.fixture
def pipeline_manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipelineManager]:
    from edgepp.engine.pipeline import PipelineOptions

    FakePipeline.opened, FakePipeline.opening, FakePipeline.may_open = [], threading.Event(), threading.Event()
    FakePipeline.may_open.set()
    monkeypatch.setattr(module, "Pipeline", FakePipeline)
    made = PipelineManager(None, PipelineOptions("m"), lambda _: None)  # type: ignore[arg-type]
    yield made
    FakePipeline.may_open.set()
    made.close()


def keep(pipeline_manager: PipelineManager, wanted: PipelineOrder) -> None:
    """Ask for the same pipeline repeatedly, as the coordinator does."""
    for _ in range(30):
        pipeline_manager.ensure_open(wanted)


def until_open(pipeline_manager: PipelineManager, wanted: PipelineOrder) -> FakePipeline:
    def look() -> Any:
        pipeline_manager.ensure_open(wanted)
        pipeline: Any = pipeline_manager.pipeline
        return pipeline is not None and pipeline.endpoints == wanted.endpoints and pipeline

    found: FakePipeline = eventually("it is open", look)
    return found


def until_next(pipeline_manager: PipelineManager, wanted: PipelineOrder, before: FakePipeline) -> FakePipeline:
    def look() -> Any:
        found = until_open(pipeline_manager, wanted)
        return found is not before and found

    found: FakePipeline = eventually("another is open", look)
    return found


def test_a_wanted_pipeline_is_opened_once(pipeline_manager: PipelineManager) -> None:
    until_open(pipeline_manager, ONE)
    keep(pipeline_manager, ONE)
    until_open(pipeline_manager, TWO)  # one thread opens in turn: a second ONE would have come before
    assert [pipeline.endpoints for pipeline in FakePipeline.opened] == [ONE.endpoints, TWO.endpoints]


def test_a_plan_that_was_superseded_while_it_opened_is_closed_and_the_next_opened_once(
    pipeline_manager: PipelineManager,
) -> None:
    FakePipeline.may_open.clear()
    pipeline_manager.ensure_open(ONE)
    assert FakePipeline.opening.wait(PATIENCE_S)
    keep(pipeline_manager, TWO)
    FakePipeline.may_open.set()
    until_open(pipeline_manager, TWO)
    keep(pipeline_manager, TWO)
    assert [pipeline.closed for pipeline in FakePipeline.opened] == [True, False]
    until_open(pipeline_manager, ONE)
    opened = [pipeline.endpoints for pipeline in FakePipeline.opened]
    assert opened == [ONE.endpoints, TWO.endpoints, ONE.endpoints]


def test_a_pipeline_that_is_lost_is_opened_again(pipeline_manager: PipelineManager) -> None:
    first = until_open(pipeline_manager, ONE)
    first.lost = StageLost("gone")
    assert pipeline_manager.pipeline is None
    assert until_open(pipeline_manager, ONE) is not first
    assert first.closed


def test_an_asker_waits_for_the_pipeline_and_not_for_ever(pipeline_manager: PipelineManager) -> None:
    pipeline_manager.close_pipeline("the layers are being loaded", EdgeppError("divided anew"))
    with pytest.raises(EdgeppError, match="the layers are being loaded"):
        pipeline_manager.acquire(0.05, lambda: False)
    with pytest.raises(EdgeppError):
        pipeline_manager.acquire(PATIENCE_S, lambda: True)
    threading.Timer(0.1, lambda: pipeline_manager.ensure_open(ONE)).start()
    assert pipeline_manager.acquire(PATIENCE_S, lambda: False) is pipeline_manager.pipeline


def test_an_asker_that_gave_up_stops_waiting_at_once(pipeline_manager: PipelineManager) -> None:
    given_up = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pipeline_manager.acquire, 60, given_up.is_set)
        given_up.set()
        pipeline_manager.wake()
        with pytest.raises(EdgeppError):
            waiting.result(PATIENCE_S)


def test_a_shortage_ends_the_wait_at_once(pipeline_manager: PipelineManager) -> None:
    pipeline_manager.set_shortage(PlanError("the model does not fit", "add a machine"))
    with pytest.raises(EdgeppError, match="the model does not fit") as caught:
        pipeline_manager.acquire(60, lambda: False)
    assert caught.value.hint == "add a machine"
    pipeline_manager.set_shortage(None)
    until_open(pipeline_manager, ONE)
    assert pipeline_manager.acquire(0.0, lambda: False) is pipeline_manager.pipeline


def test_answers_end_with_the_reason_why_the_pipeline_is_closed(pipeline_manager: PipelineManager) -> None:
    first = until_open(pipeline_manager, ONE)
    lost = StageLost("stage 0 (layers 0-3) on node mini is gone: its stage process ended")
    pipeline_manager.close_pipeline("mini: its stage process ended", lost)
    second = until_next(pipeline_manager, ONE, first)
    third = until_open(pipeline_manager, TWO)
    assert first.told is lost
    assert isinstance(second.told, StageLost)
    assert "stage 0 (layers 0-3) on node mini is gone: it is at 127.0.0.1:2 now" in str(second.told)
    pipeline_manager.close()
    assert "the coordinator was closed" in str(third.told)


def test_an_unexpected_error_costs_one_attempt_and_not_the_thread(
    pipeline_manager: PipelineManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = until_open(pipeline_manager, ONE)
    monkeypatch.setattr(first, "close", raising(OSError(24, "Too many open files")))
    first.lost = StageLost("gone")
    until_next(pipeline_manager, ONE, first)
    assert pipeline_manager.alive


def raising(error: Exception) -> Any:
    def call(*_: object) -> None:
        raise error

    return call
