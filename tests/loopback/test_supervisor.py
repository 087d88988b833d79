"""A stage slot: its stage process is started again when it ends or hangs, and left alone when it keeps ending."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgepp.node import supervisor as supervisor_module
from edgepp.node.supervisor import Report, StageSupervisor
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.messages import Load, Loaded, Loading, NotLoaded, Restart
from tests.waiting import PATIENCE_S, eventually


class Slot:
    """One supervisor, and what it reports."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        settings = StageSettings(ComputePolicy(1), "onnx")
        self.supervisor = StageSupervisor(0, settings, self.reports.put)
        self.supervisor.start()

    def load(self, plan_id: int, start: int = 0, stop: int = 2) -> Load:
        load = Load(plan_id, 0, str(self.model), start, stop, False, 0)
        self.supervisor.assign(load)
        return load

    def next(self) -> Loaded | NotLoaded:
        """The next report that is not mere progress."""
        while isinstance(report := self.reports.get(timeout=PATIENCE_S), Loading):
            continue
        return report

    def loaded(self) -> Loaded:
        report = self.next()
        assert isinstance(report, Loaded), report
        return report

    def lost(self) -> NotLoaded:
        report = self.next()
        assert isinstance(report, NotLoaded), report
        return report


@pytest.fixture
def slot(tiny: Path) -> Iterator[Slot]:
    made = Slot(tiny)
    yield made
    made.supervisor.close()


def test_a_stage_process_that_ends_is_started_again_for_the_same_plan(slot: Slot) -> None:
    slot.load(7)
    first = slot.loaded()
    os.kill(first.pid, signal.SIGKILL)
    lost = slot.lost()
    assert lost.restarting
    assert lost[:2] == (7, 0)
    assert "ended by itself (exit status -9)" in lost.reason
    second = slot.loaded()
    assert second[:2] == (7, 0)
    assert second.pid != first.pid
    assert psutil.pid_exists(second.pid)


def test_a_stage_that_keeps_ending_early_is_left_to_the_coordinator(slot: Slot) -> None:
    load = slot.load(1)
    os.kill(slot.loaded().pid, signal.SIGKILL)
    assert slot.lost().restarting
    os.kill(slot.loaded().pid, signal.SIGKILL)
    assert not slot.lost().restarting
    assert slot.supervisor.resident_bytes == 0
    slot.supervisor.assign(load)  # the coordinator orders it again
    os.kill(slot.loaded().pid, signal.SIGKILL)
    assert slot.lost().restarting


def test_ends_that_are_not_early_do_not_count(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "EARLY_END_S", 0.0)
    slot.load(1)
    for _ in range(4):
        os.kill(slot.loaded().pid, signal.SIGKILL)
        assert slot.lost().restarting
    slot.loaded()


def test_a_stage_that_cannot_start_again_is_left_to_the_coordinator(slot: Slot, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in slot.model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    slot.model = model
    slot.load(1)
    first = slot.loaded()
    (model / "config.json").unlink()
    os.kill(first.pid, signal.SIGKILL)
    assert slot.lost().restarting
    lost = slot.lost()
    assert not lost.restarting
    assert "config.json" in lost.reason


def test_a_stopped_stage_process_is_ended_and_started_again_on_demand(slot: Slot) -> None:
    slot.load(3)
    first = slot.loaded()
    slot.supervisor.restart(Restart(3, 0, first.pid + 1))  # another process: ignored
    os.kill(first.pid, signal.SIGSTOP)
    slot.supervisor.restart(Restart(3, 0, first.pid))
    lost = slot.lost()
    assert lost.restarting
    assert "hung" in lost.reason
    second = slot.loaded()
    slot.supervisor.restart(Restart(3, 0, first.pid))  # told late: ignored
    slot.load(4)
    assert slot.loaded()[:1] == (4,)
    assert psutil.pid_exists(second.pid)
    assert not psutil.pid_exists(first.pid)


def test_an_assignment_ends_a_stage_process_that_hangs_while_it_loads(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = supervisor_module.StageProcess

    class Hanging(begin):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            os.kill(self.pid, signal.SIGSTOP)

    monkeypatch.setattr(supervisor_module, "StageProcess", Hanging)
    slot.load(1)
    child = eventually("a stage process", lambda: slot.supervisor._child)
    monkeypatch.setattr(supervisor_module, "StageProcess", begin)
    slot.load(2)
    assert slot.loaded()[:1] == (2,)
    assert not psutil.pid_exists(child.pid)
