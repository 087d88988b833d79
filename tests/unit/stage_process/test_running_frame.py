"""The frame that runs is stopped where it is void or its sequence was freed, and no other frame is."""

from __future__ import annotations

import threading

import pytest

from edgepp.stage_process.frames import Frame
from edgepp.stage_process.running_frame import RunningFrame
from edgepp.wire.messages.control import Void
from edgepp.wire.messages.data import REPLAYED, Batch
from tests.stages import WIDTH, forward


def frame(position: int, step: int, sequence: int = 1) -> Frame:
    return forward(sequence, position)._replace(step=step)


def batch(*sequences: int, step: int = 5) -> Frame:
    return Batch(1, step, sequences, (7,) * len(sequences), WIDTH, "float32", "none", ())


class Running:
    def __init__(self) -> None:
        self.interruption = threading.Event()
        self.frame = RunningFrame(self.interruption)

    def is_stopped(self, running: Frame, void: Void) -> bool:
        """Whether ``void`` stops ``running``; it must also keep the same frame from running."""
        assert self.frame.begin(running)
        self.frame.void(void)
        self.frame.end()
        stopped = self.interruption.is_set()
        assert self.frame.begin(running) is not stopped
        return stopped


@pytest.fixture
def running() -> Running:
    return Running()


@pytest.mark.parametrize(
    ("one", "stops"),
    [
        (frame(7, 5), True),
        (frame(8, 5), True),
        (frame(6, 5), False),
        (frame(7, 6), False),
        (frame(7, 7), False),
        (frame(7, 5, sequence=2), False),
        (frame(7, 5)._replace(epoch=2), False),
        (frame(7, REPLAYED), False),
        (batch(1), True),
        (batch(1, 2), False),
    ],
)
def test_frames_before_the_step_at_its_position_or_later_are_stopped(
    running: Running, one: Frame, *, stops: bool
) -> None:
    assert running.is_stopped(one, Void(1, 1, 6, 7)) is stops


def test_a_batch_whose_sequences_are_all_void_is_stopped(running: Running) -> None:
    running.frame.void(Void(1, 2, 6, 7))
    assert running.is_stopped(batch(1, 2), Void(1, 1, 6, 7))


def test_the_frame_behind_one_that_was_stopped_runs(running: Running) -> None:
    assert running.is_stopped(frame(7, 5), Void(1, 1, 6, 7))
    assert running.frame.begin(frame(7, 6))
    assert not running.interruption.is_set()


def test_nothing_is_stopped_between_two_frames(running: Running) -> None:
    assert running.frame.begin(frame(7, 5))
    running.frame.end()
    running.frame.void(Void(1, 1, 6, 7))
    running.frame.leave(1)
    assert not running.interruption.is_set()


def test_a_sequence_that_is_freed_stops_frames_of_its_own_alone(running: Running) -> None:
    for one, sequence, stops in ((frame(0, 1), 1, True), (frame(0, 1), 2, False), (batch(1, 2), 1, False)):
        assert running.frame.begin(one)
        running.frame.leave(1, sequence)
        assert running.interruption.is_set() is stops


def test_an_epoch_that_is_left_stops_its_frames(running: Running) -> None:
    for epoch, stops in ((1, True), (2, False)):
        assert running.frame.begin(batch(1, 2))
        running.frame.leave(epoch)
        assert running.interruption.is_set() is stops


def test_messages_about_many_sequences_take_no_memory_without_end(running: Running) -> None:
    for sequence in range(1000):
        running.frame.void(Void(1, sequence, 6, 7))
    assert running.frame.begin(frame(7, 5, sequence=0))
    assert not running.frame.begin(frame(7, 5, sequence=999))


def test_a_model_that_cannot_stop_runs_to_the_end() -> None:
    running = RunningFrame(None)
    assert running.begin(frame(7, 5))
    running.void(Void(1, 1, 6, 7))
    running.leave(1)
    assert not running.begin(frame(7, 5))
