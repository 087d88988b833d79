"""A ring that replaces another one keeps the sequences of the stages that were part of both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgepp.stage_process.control_thread import MAX_EPOCHS_PER_OWNER
from edgepp.stage_process.held_sequences import MAX_SEQUENCES
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.control import Attached, Detach, Free, Ping, Pong, Refused
from edgepp.wire.messages.data import Hidden
from edgepp.wire.messages.recovery import Held
from tests.stages import ATTACH, DRIVER, WIDTH, Stage, forward

ROWS = np.ones((3, WIDTH))
INHERIT = ATTACH._replace(epoch=2, inherits=1)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    made.order(DRIVER, encode(ATTACH))
    yield made
    made.close()


def test_sequences_go_on_in_the_new_epoch(stage: Stage) -> None:
    for sequence in (1, 2, 3):
        stage.feed(forward(sequence, rows=3), ROWS)
    stage.order(DRIVER, encode(Free(1, 2)))
    held, attached = stage.order(DRIVER, encode(INHERIT))
    assert held == Held(2, "kv", 0, 4, (1, 3), (3, 3))
    assert isinstance(attached, Attached)
    stage.data.sent.clear()
    stage.feed(forward(1, position=3)._replace(epoch=2), ROWS[:1])
    ((_, answer),) = stage.data.sent
    assert isinstance(answer, Hidden)
    assert answer.epoch == 2
    stage.feed(forward(2, position=0)._replace(epoch=2), ROWS[:1])
    assert stage.compute.runner.lengths(2) == {1: 4, 3: 3}


def test_frames_of_the_old_epoch_are_dropped_and_its_pings_tell_that_its_sequences_live(stage: Stage) -> None:
    stage.feed(forward(1, rows=3), ROWS)
    stage.order(DRIVER, encode(INHERIT))
    dropped = stage.compute.runner.counters.dropped
    stage.feed(forward(1, position=3), ROWS[:1])
    assert stage.compute.runner.counters.dropped == dropped + 1
    assert are_known(stage, 1, 2, 3) == [True, True, False]
    stage.order(DRIVER, encode(Detach(1)))
    assert stage.compute.runner.lengths(2) == {1: 3}
    stage.order(DRIVER, encode(Detach(2)))
    assert stage.compute.runner.sequences == 0
    assert are_known(stage, 1, 2) == [False, False]


def are_known(stage: Stage, *epochs: int) -> list[bool]:
    """What the stage answers to pings of these epochs."""
    pongs = [stage.order(DRIVER, encode(Ping(epoch)))[0] for epoch in epochs]
    return [isinstance(pong, Pong) and pong.known for pong in pongs]


def test_an_epoch_is_inherited_by_its_owner_alone(stage: Stage) -> None:
    one, other = DRIVER._replace(key="", host="10.0.0.1"), DRIVER._replace(key="", host="10.0.0.2")
    stage.order(one, encode(ATTACH._replace(epoch=7, previous_key="")))
    theft = ATTACH._replace(epoch=8, inherits=7, previous_key="")
    (refused,) = stage.order(other, encode(theft))
    assert isinstance(refused, Refused)
    assert "another coordinator" in refused.reason
    assert isinstance(stage.order(one, encode(theft))[-1], Attached)


def test_an_unknown_epoch_leaves_nothing_to_inherit(stage: Stage) -> None:
    assert [type(one) for one in stage.order(DRIVER, encode(ATTACH._replace(epoch=9, inherits=77)))] == [Attached]
    assert are_known(stage, 9, 77) == [True, False]


def test_many_sequences_take_several_messages(stage: Stage) -> None:
    for sequence in range(1, MAX_SEQUENCES + 6):
        stage.feed(forward(sequence), ROWS[:1])
    first, second, _ = stage.order(DRIVER, encode(INHERIT))
    assert isinstance(first, Held)
    assert isinstance(second, Held)
    assert (len(first.sequences), len(second.sequences)) == (MAX_SEQUENCES, 5)


def test_a_chain_of_rings_takes_one_place(stage: Stage) -> None:
    stage.feed(forward(1, rows=3), ROWS)
    for epoch in range(2, 3 * MAX_EPOCHS_PER_OWNER):
        answers = stage.order(DRIVER, encode(ATTACH._replace(epoch=epoch, inherits=epoch - 1)))
        assert [type(one) for one in answers] == [Held, Attached]


def test_a_ring_that_could_not_be_joined_leaves_the_old_one(stage: Stage) -> None:
    stage.feed(forward(1, rows=3), ROWS)
    stage.control._connector.begin = lambda _: None  # type: ignore[method-assign]
    assert stage.order(DRIVER, encode(INHERIT)) == []
    stage.order(DRIVER, encode(Detach(2)))
    assert stage.compute.runner.lengths(1) == {1: 3}
    (pong,) = stage.order(DRIVER, encode(Ping(1)))
    assert isinstance(pong, Pong)
    assert pong.known
