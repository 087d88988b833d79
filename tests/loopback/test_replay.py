"""Replays and numbered frames: a stage sends its log again, a frame ends where it says, and a gap is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.attachment import Attachment
from edgepp.stage_process.next_stage import ConnectAttempt, NextStageLink
from edgepp.stage_process.paced_link import ECHO_WAIT_S, PacedLink
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Fault, FrameLost
from edgepp.wire.messages.data import REPLAYED, Batch, Echo, Forward, Hidden
from edgepp.wire.messages.recovery import Rebuilt, Replay
from tests.stages import ATTACH, DRIVER, GUEST, WIDTH, Stage, forward
from tests.wire import KEYS

FIRST = ATTACH._replace(epoch=2, next_addresses="10.0.0.9:5720", next_key=KEYS[2])


class TakingLink:
    """A link that takes everything and returns no echo until the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[Message, list[bytes]]] = []
        self.answers: list[Message] = []

    def send(self, parts: Any, _: float = 0.0) -> bool:
        self.sent.append((decode(parts[0]), [bytes(part) for part in parts[1:]]))
        return True

    def receive(self) -> list[memoryview] | None:
        return [memoryview(encode(self.answers.pop(0)))] if self.answers else None

    def frames(self) -> list[Forward]:
        return [message for message, _ in self.sent if isinstance(message, Forward)]

    def echo(self) -> None:
        self.answers += [message._replace(reply=True) for message, _ in self.sent if isinstance(message, Echo)]
        self.sent = [(message, rest) for message, rest in self.sent if not isinstance(message, Echo)]

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def link() -> TakingLink:
    return TakingLink()


@pytest.fixture
def stage(link: TakingLink) -> Iterator[Stage]:
    """Stage 0 of two in epoch 2."""
    made = Stage()
    made.compute.execute(NextStageLink(ConnectAttempt(b"driver", FIRST), link))  # type: ignore[arg-type]
    made.compute.outbox.drain()
    yield made
    made.close()


def rows(first: int, count: int) -> Any:
    return np.repeat(np.arange(first, first + count, dtype=np.float32)[:, None], WIDTH, axis=1)


def feed(stage: Stage, sequence: int, position: int, count: int, until: int = 1) -> None:
    stage.feed(forward(sequence, position, count)._replace(epoch=2, until=until, wanted_rows=0), rows(position, count))


def said(stage: Stage) -> list[Message]:
    return [message for _, message in stage.compute.outbox.drain()]


def test_a_replay_sends_the_log_again_in_chunks(stage: Stage, link: TakingLink) -> None:
    feed(stage, 1, 0, 20)
    batch = Batch(2, 5, (1,), (20,), WIDTH, "float32", "none", ())
    stage.feed(batch, rows(20, 1))
    link.sent.clear()
    stage.compute.execute(Replay(2, 1, 64, 3, 21, 1))
    while stage.compute._move_bulk():
        link.echo()
    frames = link.frames()
    assert [(one.position, one.rows, one.serial) for one in frames] == [(3, 8, 2), (11, 8, 3), (19, 2, 4)]
    assert {(one.step, one.until, one.capacity, one.wanted_rows) for one in frames} == {(REPLAYED, 1, 64, 0)}
    sent = b"".join(tensor for message, (tensor, *_) in ((m, r) for m, r in link.sent if isinstance(m, Forward)))
    assert sent == rows(3, 18).tobytes()
    feed(stage, 1, 21, 1)
    assert stage.compute.bulk._boundary_log.lengths(2) == {1: 22}


def test_other_frames_go_between_two_chunks(stage: Stage, link: TakingLink) -> None:
    feed(stage, 1, 0, 16)
    link.sent.clear()
    stage.compute.execute(Replay(2, 1, 64, 0, 16, 1))
    stage.compute._move_bulk()
    feed(stage, 2, 0, 1)
    stage.compute._move_bulk()
    assert [(one.sequence, one.position) for one in link.frames()] == [(1, 0), (2, 0), (1, 8)]


def test_a_replay_waits_for_a_receiver_that_takes_nothing(stage: Stage, link: TakingLink) -> None:
    stage.compute.bulk._replays[2][1]._window_bytes = 2 * 8 * WIDTH * 4
    feed(stage, 1, 0, 40)
    link.sent.clear()
    stage.compute.execute(Replay(2, 1, 64, 0, 40, 1))
    for _ in range(9):
        stage.compute._move_bulk()
    assert len(link.frames()) == 2
    link.echo()
    for _ in range(9):
        stage.compute._move_bulk()
    assert len(link.frames()) == 4


@pytest.mark.parametrize(
    ("replay", "reason"),
    [
        (Replay(2, 1, 64, 0, 21, 1), "does not hold positions 0 to 20"),
        (Replay(2, 9, 64, 0, 2, 1), "does not hold"),
        (Replay(2, 1, 64, 0, 2, 0), "later stages"),
    ],
)
def test_a_replay_that_is_impossible_is_a_fault_of_that_sequence(stage: Stage, replay: Replay, reason: str) -> None:
    feed(stage, 1, 0, 20)
    feed(stage, 3, 0, 2)
    stage.compute.execute(replay)
    (fault,) = said(stage)
    assert isinstance(fault, Fault)
    assert (fault.sequence, fault.stage) == (replay.sequence, 0)
    assert reason in fault.reason
    assert 3 in stage.compute.runner.lengths(2)


def test_a_replay_of_a_freed_sequence_comes_to_nothing(stage: Stage, link: TakingLink) -> None:
    feed(stage, 1, 0, 20)
    stage.compute.execute(Replay(2, 1, 64, 0, 20, 1))
    stage.compute._move_bulk()
    stage.compute.runner.free(2, 1)
    link.sent.clear()
    assert not stage.compute._move_bulk()
    assert link.sent == []
    assert stage.compute.bulk._boundary_log.nbytes == 0


def test_a_hostile_echo_fails_the_replay_and_nothing_else(stage: Stage, link: TakingLink) -> None:
    feed(stage, 1, 0, 20)
    stage.compute.execute(Replay(2, 1, 64, 0, 20, 1))
    link.answers.append(Hidden(2, 1, 1, 1, WIDTH, "float32", "none", ()))
    stage.compute._move_bulk()
    (fault,) = said(stage)
    assert isinstance(fault, Fault)
    assert "echo was due" in fault.reason


def test_a_frame_that_ends_here_is_computed_logged_and_reported(stage: Stage, link: TakingLink) -> None:
    feed(stage, 1, 0, 4, until=0)
    feed(stage, 1, 4, 2, until=0)
    assert said(stage) == [Rebuilt(2, 1, 4), Rebuilt(2, 1, 6)]
    assert link.frames() == []
    assert stage.compute.bulk._boundary_log.lengths(2) == {1: 6}


def test_the_last_stage_reports_a_replay_and_returns_other_frames() -> None:
    stage = Stage()
    stage.order(DRIVER, encode(ATTACH))
    stage.feed(forward(1, rows=3)._replace(step=REPLAYED, wanted_rows=0), rows(0, 3))
    assert said(stage) == [Rebuilt(1, 1, 3)]
    assert stage.data.sent == []
    stage.feed(forward(1, position=3)._replace(wanted_rows=0), rows(3, 1))
    stage.feed(forward(1, position=4), rows(4, 1))
    answers = [message for _, message in stage.data.sent]
    assert [(type(one), one.rows, one.serial) for one in answers] == [(Hidden, 0, 0), (Hidden, 1, 1)]  # type: ignore[union-attr]
    assert stage.compute.bulk._boundary_log.lengths(1) == {}
    stage.close()


def test_a_frame_that_ended_before_this_stage_is_refused() -> None:
    stage = Stage()
    stage.order(DRIVER, encode(ATTACH._replace(stage=3)))
    stage.feed(forward(1)._replace(until=2), rows(0, 1))
    assert stage.compute.runner.counters.dropped == 1
    assert stage.compute.runner.sequences == 0
    stage.close()


def test_a_gap_is_reported_once_and_the_frame_computed(stage: Stage, link: TakingLink) -> None:
    feed(stage, 1, 0, 4)
    late = forward(1, 4)._replace(epoch=2, until=1, serial=3)
    stage.feed(late, rows(4, 1))
    feed(stage, 1, 5, 1)
    assert said(stage) == [FrameLost(2, 0)]
    assert [one.serial for one in link.frames()] == [0, 1, 2]


@pytest.mark.parametrize("serial", [1, 2])
def test_a_repeated_or_older_frame_is_dropped_and_counted(stage: Stage, serial: int) -> None:
    for position in range(3):
        feed(stage, 1, position, 1)
    stage.feed(forward(1, 1)._replace(epoch=2, until=1, serial=serial), rows(9, 1))
    assert stage.compute.runner.counters.dropped == 1
    assert said(stage) == []
    assert stage.compute.runner.lengths(2) == {1: 3}


def test_a_frame_of_broken_bytes_is_reported_as_lost(stage: Stage) -> None:
    stage.data.put(GUEST, [encode(forward(1)._replace(epoch=2, until=1)), b"short"])
    stage.compute.receive()
    assert said(stage) == [FrameLost(2, 0)]
    feed(stage, 1, 0, 1)
    assert said(stage) == []


def test_a_stranger_moves_no_serial_number(stage: Stage) -> None:
    frame = forward(1)._replace(epoch=2, until=1, serial=900)
    stage.data.put(DRIVER, [encode(frame), rows(0, 1).tobytes()])
    stage.compute.receive()
    assert said(stage) == []
    feed(stage, 1, 0, 1)
    assert stage.compute.runner.lengths(2) == {1: 1}


def test_serial_numbers_count_up() -> None:
    ring = Attachment(ATTACH, b"c", None, CodecChoice("none", 0))
    assert [ring.arrivals.arrived(serial) for serial in (0, 1, 4, 5)] == [False, False, True, False]
    for old in (5, 4, 0):
        with pytest.raises(RemoteProtocolError, match="came after frame 5"):
            ring.arrivals.arrived(old)
    assert [ring.next_serial() for _ in range(3)] == [0, 1, 2]


def test_a_missing_echo_means_lost_messages(link: TakingLink, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = PacedLink(link, 100)  # type: ignore[arg-type]
    pace.mark(60)
    pace.mark(40)
    assert not pace.has_room(1)
    first, second = (message for message, _ in link.sent)
    link.answers.append(second._replace(reply=True))  # type: ignore[call-arg]
    assert pace.read_echoes()
    assert pace.has_room(1000)
    link.answers.append(first._replace(reply=True))  # type: ignore[call-arg]
    pace.mark(60)
    assert not pace.read_echoes()
    assert not pace.has_room(41)
    monkeypatch.setattr("edgepp.stage_process.paced_link.time.monotonic", lambda: 1e9 + ECHO_WAIT_S)
    assert pace.read_echoes()
    assert pace.is_idle
