from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from edgepp.engine.peers import Endpoint
from edgepp.errors import EdgeppError, StageLost
from edgepp.serve import serving as module
from edgepp.serve.serving import Serving, Wanted
from edgepp.wire.transport import Address

ONE = Wanted(1, (Endpoint((Address("127.0.0.1", 1),)),))
TWO = Wanted(2, (Endpoint((Address("127.0.0.1", 2),)),))


class FakePipeline:
    """Stands in for a pipeline of real stages: opening one is slow and has to be under the test's control."""

    opened: list[FakePipeline]
    may_open: threading.Event

    def __init__(self, options: Any, front: Any = None) -> None:
        assert self.may_open.wait(10)
        self.endpoints = options.endpoints
        self.lost: EdgeppError | None = None
        self.closed = False
        self.engine = self
        self.opened.append(self)

    def close(self, _reason: EdgeppError | None = None) -> None:
        self.closed = True


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    from edgepp.engine.pipeline import PipelineOptions

    FakePipeline.opened, FakePipeline.may_open = [], threading.Event()
    FakePipeline.may_open.set()
    monkeypatch.setattr(module, "Pipeline", FakePipeline)
    made = Serving(None, PipelineOptions("m"), lambda _: None)  # type: ignore[arg-type]
    yield made
    FakePipeline.may_open.set()
    made.close()


def keep(serving: Serving, wanted: Wanted, seconds: float) -> None:
    """What the coordinator does: ask for the same again and again."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        serving.keep(wanted)
        time.sleep(0.01)


def until_open(serving: Serving, wanted: Wanted) -> FakePipeline:
    until_s = time.monotonic() + 10
    while serving.pipeline is None or serving.pipeline.endpoints != wanted.endpoints:  # type: ignore[attr-defined]
        assert time.monotonic() < until_s
        serving.keep(wanted)
        time.sleep(0.01)
    return serving.pipeline  # type: ignore[return-value]


def test_what_is_wanted_is_opened_once(serving: Serving) -> None:
    keep(serving, ONE, 0.3)
    assert len(FakePipeline.opened) == 1


def test_a_plan_that_was_superseded_while_it_opened_is_closed_and_the_next_opened_once(serving: Serving) -> None:
    FakePipeline.may_open.clear()
    serving.keep(ONE)
    time.sleep(0.05)
    keep(serving, TWO, 0.1)
    FakePipeline.may_open.set()
    until_open(serving, TWO)
    keep(serving, TWO, 0.5)
    assert [pipeline.endpoints for pipeline in FakePipeline.opened] == [ONE.endpoints, TWO.endpoints]
    assert [pipeline.closed for pipeline in FakePipeline.opened] == [True, False]


def test_a_pipeline_that_is_lost_is_opened_again(serving: Serving) -> None:
    first = until_open(serving, ONE)
    first.lost = StageLost("gone")
    assert serving.pipeline is None
    assert until_open(serving, ONE) is not first
    assert first.closed


def test_an_asker_waits_for_the_pipeline_and_not_for_ever(serving: Serving) -> None:
    serving.shut("the layers are being loaded")
    with pytest.raises(EdgeppError, match="the layers are being loaded"):
        serving.acquire(0.05, lambda: False)
    with pytest.raises(EdgeppError):
        serving.acquire(30, lambda: True)
    threading.Timer(0.1, lambda: serving.keep(ONE)).start()
    assert serving.acquire(10, lambda: False) is serving.pipeline
