"""Frames that a later frame makes void are not computed and not sent on; all else is handled in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgepp.wire.message_codec import encode
from edgepp.wire.messages.control import Detach, FrameLost, Free, Ping, Pong, Refused, Void
from edgepp.wire.messages.data import REPLAYED, Batch, Echo, Forward, Hidden
from tests.stages import ATTACH, DRIVER, GUEST, WIDTH, Stage, forward


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A last stage that holds five positions of sequence 1; three frames have come."""
    made = Stage()
    made.order(DRIVER, encode(ATTACH))
    made.feed(forward(1, 0, 3), rows(3))
    made.feed(forward(1, 3), rows(1))
    made.feed(forward(1, 4), rows(1))
    made.data.sent.clear()
    yield made
    made.close()


def rows(count: int) -> Any:
    return np.ones((count, WIDTH), np.float32)


def put(stage: Stage, *frames: Forward | Batch) -> None:
    """Let frames wait in the socket, numbered behind the three that have come; the step is the number."""
    for number, frame in enumerate(frames, 3):
        step = frame.step or number
        stage.put(frame._replace(serial=number, step=step), rows(frame.rows))


def handle(stage: Stage, messages: int) -> list[int]:
    """Handle so many messages; the steps of the answers."""
    for _ in range(messages):
        stage.compute.receive()
    steps = [answer.step for _, answer in stage.data.sent if isinstance(answer, Hidden | Batch)]
    stage.data.sent.clear()
    return steps


def test_wrong_guesses_are_not_computed(stage: Stage) -> None:
    put(stage, forward(1, 5), forward(1, 6), forward(1, 7), forward(1, 6))
    assert handle(stage, 4) == [3, 6]
    (pong,) = stage.order(DRIVER, encode(Ping(1)))
    assert isinstance(pong, Pong)
    assert (pong.frames, pong.void, pong.dropped) == (3 + 2, 2, 0)
    assert list(stage.model.lengths.values()) == [7]


def test_a_wrong_guess_that_is_computed_is_stopped(stage: Stage) -> None:
    put(stage, forward(1, 5), forward(1, 6), forward(1, 7))
    assert handle(stage, 1) == [3]
    stage.order_meanwhile(Void(1, 1, 6, 6))
    assert handle(stage, 2) == []  # the next one neither begins
    assert list(stage.model.lengths.values()) == [6]
    stage.put(forward(1, 6)._replace(serial=6, step=6), rows(1))
    assert handle(stage, 1) == [6]
    assert (stage.compute.runner.counters.frames, stage.compute.runner.counters.void) == (3 + 2, 2)
    assert stage.faults() == []


def test_a_chunk_of_a_sequence_that_is_freed_meanwhile_is_stopped(stage: Stage) -> None:
    put(stage, forward(1, 5, 4), forward(2, 0, 2))
    stage.order_meanwhile(Free(1, 1))
    assert handle(stage, 1) == []
    stage.work()
    assert stage.model.lengths == {}
    assert handle(stage, 1) == [4]
    assert stage.faults() == []


def test_a_chunk_is_stopped_that_the_coordinator_has_left(stage: Stage) -> None:
    put(stage, forward(1, 5, 4))
    stage.order_meanwhile(Detach(1))
    assert handle(stage, 1) == []
    stage.work()
    assert stage.model.lengths == {}


def test_others_have_no_say_in_what_is_computed(stage: Stage) -> None:
    put(stage, forward(1, 5))
    assert [type(answer) for answer in stage.order(GUEST, encode(Void(1, 1, 9, 0)))] == [Refused]
    assert handle(stage, 1) == [3]


def test_guesses_that_hold_are_all_computed(stage: Stage) -> None:
    put(stage, forward(1, 5), forward(1, 6), forward(1, 7))
    assert handle(stage, 3) == [3, 4, 5]
    assert stage.compute.runner.counters.void == 0


def test_a_frame_that_comes_while_another_is_computed_makes_those_behind_it_void(stage: Stage) -> None:
    put(stage, forward(1, 5), forward(1, 6))
    assert handle(stage, 1) == [3]
    stage.put(forward(1, 6)._replace(serial=5, step=5), rows(1))
    assert handle(stage, 2) == [5]


def test_a_batch_with_a_row_that_counts_is_computed(stage: Stage) -> None:
    stage.feed(forward(2, 0, 2), rows(2))
    stage.data.sent.clear()
    batch = Batch(1, 9, (1, 2), (5, 2), WIDTH, "float32", "none", (), 4)
    stage.put(batch, rows(2))
    stage.put(forward(1, 5)._replace(serial=5, step=10), rows(1))
    assert handle(stage, 2) == [9, 10]


def test_replays_are_neither_void_nor_void_others(stage: Stage) -> None:
    put(stage, forward(1, 3)._replace(step=REPLAYED, wanted_rows=0), forward(1, 3))
    assert handle(stage, 2) == [4]
    assert stage.compute.runner.counters.void == 0
    assert stage.compute.runner.counters.frames == 3 + 2
    stage.put(forward(1, 4)._replace(serial=5, step=11), rows(1))
    stage.put(forward(1, 4)._replace(serial=6, step=REPLAYED, wanted_rows=0), rows(1))
    assert handle(stage, 2) == [11]


def test_a_frame_of_another_sender_makes_nothing_void(stage: Stage) -> None:
    put(stage, forward(1, 5))
    stage.put(forward(1, 0)._replace(serial=4), rows(1), DRIVER)
    assert handle(stage, 2) == [3]
    assert (stage.compute.runner.counters.void, stage.compute.runner.counters.dropped) == (0, 1)


def test_a_damaged_frame_makes_nothing_void_and_is_told(stage: Stage) -> None:
    put(stage, forward(1, 5), forward(1, 5)._replace(checksum=1))
    assert handle(stage, 2) == [3]
    assert [message for _, message in stage.compute.outbox.drain()] == [FrameLost(1, 0)]
    assert (stage.compute.runner.counters.void, stage.compute.runner.counters.dropped) == (0, 1)


def test_numbers_of_void_frames_count_and_a_gap_is_told(stage: Stage) -> None:
    put(stage, forward(1, 5), forward(1, 5))
    assert handle(stage, 2) == [4]
    stage.put(forward(1, 6)._replace(serial=6, step=6), rows(1))
    assert handle(stage, 1) == [6]
    assert [message for _, message in stage.compute.outbox.drain()] == [FrameLost(1, 0)]


def test_echoes_keep_their_place_behind_frames(stage: Stage) -> None:
    put(stage, forward(1, 5))
    stage.data.put(GUEST, [encode(Echo(7, reply=False))])
    stage.compute.receive()
    assert [type(answer) for _, answer in stage.data.sent] == [Hidden]
    stage.compute.receive()
    assert stage.data.sent[1:] == [(GUEST.route, Echo(7, reply=True))]


def test_frames_of_a_ring_that_is_left_meanwhile_are_dropped(stage: Stage) -> None:
    put(stage, forward(1, 5), forward(1, 6))
    assert handle(stage, 1) == [3]
    stage.order(DRIVER, encode(ATTACH))  # the same epoch again, without its sequences
    assert handle(stage, 1) == []
    assert stage.compute.runner.counters.dropped == 1
