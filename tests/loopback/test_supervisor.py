"""A stage slot: a stage process that ends or hangs is started again; the former one stays for a while."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.toolkit.slow_link import free_pair
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node import slot_stages, stage_ranks
from edgepp.node import supervisor as supervisor_module
from edgepp.node.supervisor import Report, StageSupervisor
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import StageSettings
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import Load, Loaded, Loading, NotLoaded, Restart, Retire
from tests.builders.checkpoints import Checkpoints
from tests.waiting import PATIENCE_S, eventually

ANY_PORT = Address("127.0.0.1", 0)


class Slot:
    """One supervisor, and what it reports."""

    def __init__(
        self, model: Path, memory_bytes: int = 1 << 30, listen: Address = ANY_PORT, ranks: tuple[int, ...] = (1,)
    ) -> None:
        self.model = model
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        settings = StageSettings(ComputePolicy(1), "onnx", listen, ranks=ranks)
        self.supervisor = StageSupervisor(0, settings, self.reports.put, memory_bytes)
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
    speed = (first.prefill_us, first.decode_us)
    assert (second.prefill_us, second.decode_us) == speed, "measuring it again takes time while answers pause"


def test_a_stage_that_keeps_ending_early_is_left_to_the_coordinator(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "EARLY_END_S", 10 * PATIENCE_S)
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
    slot.supervisor.order(Restart(3, 0, first.pid + 1))  # another process: ignored
    os.kill(first.pid, signal.SIGSTOP)
    slot.supervisor.order(Restart(3, 0, first.pid))
    lost = slot.lost()
    assert lost.restarting
    assert "hung" in lost.reason
    second = slot.loaded()
    slot.supervisor.order(Restart(3, 0, first.pid))  # told late: ignored
    slot.load(4)
    assert slot.loaded()[:1] == (4,)
    assert psutil.pid_exists(second.pid)
    assert not psutil.pid_exists(first.pid)


def test_an_assignment_ends_a_stage_process_that_hangs_while_it_loads(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = stage_ranks.StageProcess

    class Hanging(begin):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            os.kill(self.pid, signal.SIGSTOP)

    monkeypatch.setattr(stage_ranks, "StageProcess", Hanging)
    slot.load(1)
    child = eventually("a stage process", lambda: slot.supervisor._starting)
    monkeypatch.setattr(stage_ranks, "StageProcess", begin)
    slot.load(2)
    assert slot.loaded()[:1] == (2,)
    assert not psutil.pid_exists(child.pid)


def at_free_ports(model: Path) -> tuple[Slot, Loaded]:
    """A slot with ports of its own choice that runs two layers; other ports if another process was faster."""
    for _ in range(20):
        made = Slot(model, listen=Address("127.0.0.1", free_pair()))
        made.load(1, 0, 2)
        if isinstance(report := made.next(), Loaded):
            return made, report
        made.supervisor.close()
    raise AssertionError(f"no port is free: {report}")


def ended(report: Loaded) -> bool:
    return not psutil.pid_exists(report.pid)


def test_the_former_stage_process_stays_until_it_is_retired(slot: Slot) -> None:
    slot.load(1, 0, 2)
    first = slot.loaded()
    alone_bytes = slot.supervisor.resident_bytes
    slot.load(2, 0, 1)
    second = slot.loaded()
    assert second.pid != first.pid
    assert slot.supervisor.resident_bytes == alone_bytes + second.resident_bytes
    slot.supervisor.order(Retire(2, 0))  # not the plan of the former one
    slot.supervisor.order(Retire(1, 0))
    eventually("the former stage process ends", lambda: ended(first))
    assert not ended(second)
    assert slot.supervisor.resident_bytes == second.resident_bytes


def test_the_former_stage_process_is_taken_back_when_the_plan_is(slot: Slot) -> None:
    slot.load(1, 0, 2)
    first = slot.loaded()
    slot.load(2, 0, 1)
    second = slot.loaded()
    slot.load(3, 0, 2)
    third = slot.loaded()
    assert (third.plan_id, third.pid) == (3, first.pid)
    slot.load(4, 1, 2)  # at most two: the one of plan 2 ends
    fourth = slot.loaded()
    assert ended(second)
    assert not ended(first)
    slot.supervisor.assign(None)
    eventually("both stage processes end", lambda: ended(first) and ended(fourth))


def test_the_former_stage_process_ends_by_itself_after_a_while(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_stages, "RETIRED_S", 0.0)
    slot.load(1, 0, 2)
    first = slot.loaded()
    slot.load(2, 0, 1)
    second = slot.loaded()
    eventually("the former stage process ends", lambda: ended(first))
    assert not ended(second)


def test_the_end_of_the_former_stage_process_is_not_reported(slot: Slot) -> None:
    slot.load(1, 0, 2)
    first = slot.loaded()
    slot.load(2, 0, 1)
    second = slot.loaded()
    os.kill(first.pid, signal.SIGKILL)
    eventually("its memory is free", lambda: slot.supervisor.resident_bytes == second.resident_bytes)
    assert slot.reports.empty()


@pytest.mark.parametrize("why", ["too little memory", "another model", "fixed port"])
def test_the_former_stage_process_ends_first(why: str, tiny: Path, checkpoints: Checkpoints) -> None:
    weight_bytes = Checkpoint.open(tiny).layer_bytes(LayerRange(0, 3))
    memory_bytes = weight_bytes - 1 if why == "too little memory" else 1 << 30
    made, first = at_free_ports(tiny) if why == "fixed port" else (Slot(tiny, memory_bytes), None)
    try:
        if first is None:
            made.load(1, 0, 2)
            first = made.loaded()
        if why == "another model":
            made.model = checkpoints(seed=1)
        made.load(2, 0, 1)
        second = made.loaded()
        assert ended(first)
        assert made.supervisor.resident_bytes == second.resident_bytes
    finally:
        made.supervisor.close()


def test_a_group_of_ranks_ends_and_is_started_again_as_one(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "EARLY_END_S", 0.0)
    slot = Slot(tiny, ranks=(1, 1))
    try:
        slot.load(1)
        eventually("a stage process", lambda: slot.supervisor._starting)
        slot.supervisor.admit(())  # before the ranks know of each other
        first = slot.loaded()
        assert first.rank_weights == (1, 1)
        assert first.rank_pids[0] == first.pid
        for kill, killed, reason in (
            (signal.SIGKILL, 1, "rank 1 of its stage ended by itself (exit status -9)"),
            (signal.SIGSTOP, 1, "rank 1 of its stage hung"),
            (signal.SIGSTOP, 0, "rank 0 of its stage hung"),
        ):
            os.kill(first.rank_pids[killed], kill)
            lost = slot.lost()
            assert reason in lost.reason
            assert lost.restarting
            second = slot.loaded()
            assert not set(first.rank_pids) & set(second.rank_pids)
            assert not any(map(psutil.pid_exists, first.rank_pids))
            first = second
        slot.supervisor.order(Restart(1, 0, first.pid))
        assert "hung" in slot.lost().reason
        assert not set(first.rank_pids) & set(slot.loaded().rank_pids)
    finally:
        slot.supervisor.close()
    assert not any(map(psutil.pid_exists, first.rank_pids))
