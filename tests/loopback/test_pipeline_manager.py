from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from edgepp.coordinator import pipeline_manager as module
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.pipeline_order import PipelineOrder
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError, PlanError, StageLost
from edgepp.wire.address import Address
from tests.waiting import PATIENCE_S, eventually

ONE = PipelineOrder(1, (Endpoint((Address("127.0.0.1", 1),)),))
TWO = PipelineOrder(2, (Endpoint((Address("127.0.0.1", 2),)),))


class FakeRing:
    """Stands in for a ring over ``endpoints``."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakePipeline:
    """Stands in for a pipeline of real stages, with opening and joining of stages under the test's control."""

    opened: list[FakePipeline]
    rings: list[FakeRing]
    opening: threading.Event
    may_open: threading.Event

    def __init__(self, options: Any, frontend: Any = None, *, recovers: bool = False) -> None:
        assert recovers
        self._wait()
        self.endpoints, self.frontend = options.endpoints, frontend
        self.told: EdgeppError | None = None
        self.ended: EdgeppError | None = None
        self.lost: EdgeppError | None = None
        self.suspended: EdgeppError | None = None
        self.closed = False
        self.engine = self
        self.opened.append(self)

    def _wait(self) -> None:
        self.opening.set()
        assert self.may_open.wait(PATIENCE_S)

    def suspend(self, reason: EdgeppError, *, lost: bool) -> Future[None]:
        self.suspended = self.suspended or reason
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def open_ring(self, endpoints: tuple[Endpoint, ...], _given_up: Callable[[], bool]) -> FakeRing:
        self._wait()
        self.rings.append(FakeRing(endpoints))
        return self.rings[-1]

    def take_ring(self, ring: FakeRing) -> None:
        self.endpoints, self.suspended = ring.endpoints, None

    def end_requests(self, error: EdgeppError) -> None:
        self.ended = error

    def close(self, reason: EdgeppError | None = None) -> None:
        self.closed = True
        self.told = self.told or reason


@pytest.fixture
def pipeline_manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipelineManager]:
    from edgepp.engine.pipeline_options import PipelineOptions

    FakePipeline.opened, FakePipeline.rings = [], []
    FakePipeline.opening, FakePipeline.may_open = threading.Event(), threading.Event()
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


def test_the_pipeline_is_opened_once_and_then_moves(pipeline_manager: PipelineManager) -> None:
    first = until_open(pipeline_manager, ONE)
    keep(pipeline_manager, ONE)
    assert until_open(pipeline_manager, TWO) is first  # one thread works in turn: a second ONE would have come before
    assert [ring.endpoints for ring in FakePipeline.rings] == [TWO.endpoints]
    assert len(FakePipeline.opened) == 1


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


def test_stages_that_were_joined_for_a_superseded_plan_are_left(pipeline_manager: PipelineManager) -> None:
    pipeline = until_open(pipeline_manager, ONE)
    FakePipeline.opening.clear()
    FakePipeline.may_open.clear()
    pipeline_manager.ensure_open(TWO)
    assert FakePipeline.opening.wait(PATIENCE_S)
    keep(pipeline_manager, ONE)
    FakePipeline.may_open.set()
    assert until_open(pipeline_manager, ONE) is pipeline
    assert [(ring.endpoints, ring.closed) for ring in FakePipeline.rings] == [
        (TWO.endpoints, True),
        (ONE.endpoints, False),
    ]


def test_stages_that_were_joined_at_a_former_address_are_taken_since_they_hold_the_sequences(
    pipeline_manager: PipelineManager,
) -> None:
    pipeline = until_open(pipeline_manager, ONE)
    FakePipeline.opening.clear()
    FakePipeline.may_open.clear()
    pipeline_manager.ensure_open(TWO)
    assert FakePipeline.opening.wait(PATIENCE_S)
    moved = replace(TWO, endpoints=ONE.endpoints)
    keep(pipeline_manager, moved)
    FakePipeline.may_open.set()
    assert until_open(pipeline_manager, moved) is pipeline
    assert [ring.closed for ring in FakePipeline.rings] == [False, False]


def test_a_pipeline_that_lost_a_stage_joins_its_stages_again(pipeline_manager: PipelineManager) -> None:
    pipeline = until_open(pipeline_manager, ONE)
    pipeline.suspended = StageLost("stage 1 is gone")
    assert pipeline_manager.pipeline is None
    assert "stage 1 is gone" in pipeline_manager.reason
    assert until_open(pipeline_manager, ONE) is pipeline
    assert not pipeline.closed


def test_a_pipeline_whose_engine_failed_is_opened_anew(pipeline_manager: PipelineManager) -> None:
    first = until_open(pipeline_manager, ONE)
    first.lost = EdgeppError("the engine failed")
    assert pipeline_manager.pipeline is None
    assert until_open(pipeline_manager, ONE) is not first
    assert first.closed


def test_answers_pause_while_a_stage_is_away_and_end_where_the_rest_cannot_hold_the_model(
    pipeline_manager: PipelineManager,
) -> None:
    pipeline = until_open(pipeline_manager, ONE)
    lost = StageLost("stage 0 (layers 0-3) on node mini is gone: its stage process ended")
    pipeline_manager.suspend("mini: its stage process ended", lost)
    assert pipeline.suspended is lost
    assert pipeline_manager.pipeline is None
    assert pipeline.ended is None
    pipeline_manager.end_answers(lost)
    assert pipeline.ended is lost
    assert until_open(pipeline_manager, ONE) is pipeline


def test_an_asker_waits_for_the_pipeline_and_not_for_ever(pipeline_manager: PipelineManager) -> None:
    pipeline_manager.suspend("the layers are being loaded", EdgeppError("divided anew"))
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


def test_another_model_and_the_end_close_the_pipeline(pipeline_manager: PipelineManager) -> None:
    first = until_open(pipeline_manager, ONE)
    changed = EdgeppError("the cluster changed its model")
    other: Any = object()
    pipeline_manager.change_model(other, pipeline_manager.options, "it is being loaded", changed)
    second = until_open(pipeline_manager, ONE)
    assert second is not first
    assert first.told is changed
    pipeline_manager.close()
    assert "the coordinator was closed" in str(second.told)


def test_an_unexpected_error_costs_one_attempt_and_not_the_thread(
    pipeline_manager: PipelineManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = until_open(pipeline_manager, ONE)
    monkeypatch.setattr(first, "open_ring", raising(OSError(24, "Too many open files")))
    first.suspended = StageLost("gone")
    eventually("it was tried", lambda: pipeline_manager.ensure_open(ONE) or pipeline_manager.num_failures)
    monkeypatch.undo()
    until_open(pipeline_manager, ONE)
    assert pipeline_manager.alive


def raising(error: Exception) -> Any:
    def call(*_: object) -> None:
        raise error

    return call
