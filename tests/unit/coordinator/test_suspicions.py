"""Stages that do not answer at the moment, as events and as a reason to wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from edgepp.coordinator.suspicions import Suspicions
from edgepp.engine.ring import StageStats
from edgepp.engine.stage_watch import SUSPECT_S
from edgepp.events import Event
from tests.builders.stages import stage_info


def pipeline(*silent_s: float) -> Any:
    """A pipeline whose stages have been silent for these seconds."""
    stats = [StageStats(0, 0, 0, 0, silent_s=one) for one in silent_s]
    stages = [stage_info(index=index, node=f"n{index}") for index in range(len(silent_s))]
    return SimpleNamespace(stages=stages, engine=SimpleNamespace(stage_stats=stats))


def test_a_suspect_is_told_once_and_its_return_too() -> None:
    told: list[Event] = []
    manager: Any = SimpleNamespace(pipeline=None)
    suspicions = Suspicions(manager, told.append)
    for silent_s, reason in [(0.4, ""), (SUSPECT_S + 0.5, "has not answered for 2 s"), (4.2, "for 4 s"), (0.1, "")]:
        manager.pipeline = pipeline(0.1, silent_s)
        suspicions.tick()
        assert reason in suspicions.reason
        assert bool(reason) == bool(suspicions.reason)
    assert len(told) == 2
    assert "n1" in str(told[0])
    assert "does not answer at the moment" in str(told[0])
    assert "answers again" in str(told[1])


def test_a_suspect_that_was_lost_is_not_said_to_answer_again() -> None:
    told: list[Event] = []
    manager: Any = SimpleNamespace(pipeline=pipeline(SUSPECT_S + 1))
    suspicions = Suspicions(manager, told.append)
    suspicions.tick()
    manager.pipeline = None
    suspicions.tick()
    assert (len(told), suspicions.reason) == (1, "")
