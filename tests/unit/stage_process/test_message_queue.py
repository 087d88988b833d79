"""Which frames are void by what is behind them, and how much a stage reads ahead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgepp.stage_process.attachment import Attachment
from edgepp.stage_process.frames import Frame
from edgepp.stage_process.message_queue import (
    MAX_BYTES,
    MAX_MESSAGES,
    MessageQueue,
    WaitingFrame,
    WaitingMessage,
    is_void,
)
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.messages.data import REPLAYED, Batch, Echo
from tests.stages import ATTACH, GUEST, WIDTH, forward


def batch(*rows: tuple[int, int], epoch: int = 1) -> Batch:
    sequences, positions = zip(*rows, strict=True)
    return Batch(epoch, 0, sequences, positions, WIDTH, "float32", "none", ())


@pytest.mark.parametrize(
    ("frame", "later", "void"),
    [
        (forward(1, 5), [], False),
        (forward(1, 5), [forward(1, 5)], True),
        (forward(1, 5), [forward(1, 4)], True),
        (forward(1, 5), [forward(1, 6)], False),
        (forward(1, 5, rows=3), [forward(1, 6)], False),
        (forward(1, 5), [forward(2, 5)], False),
        (forward(1, 5), [forward(1, 5)._replace(epoch=2)], False),
        (forward(1, 5), [forward(1, 6), forward(1, 5)], True),
        (forward(1, 5), [batch((2, 9), (1, 5))], True),
        (batch((1, 5)), [forward(1, 5)], True),
        (batch((1, 5), (2, 9)), [forward(1, 5)], False),
        (batch((1, 5), (2, 9)), [forward(1, 5), batch((2, 8), (3, 1))], True),
        (forward(1, 5)._replace(step=REPLAYED), [forward(1, 5)], False),
        (forward(1, 5), [forward(1, 5)._replace(step=REPLAYED)], False),
        (forward(1, 5)._replace(source=7), [forward(1, 5)], False),
        (forward(1, 5), [forward(2, 3)._replace(source=1), forward(1, 5)], False),
    ],
)
def test_a_frame_is_void_where_a_later_one_begins_at_its_position_or_before(
    frame: Frame, later: Sequence[Frame], void: bool
) -> None:
    assert is_void(frame, later) is void


def test_a_queue_is_bounded_by_messages_and_by_bytes_and_knows_what_is_behind() -> None:
    queue = MessageQueue()
    echo = WaitingMessage(GUEST, Echo(1, reply=False), [])
    for _ in range(MAX_MESSAGES):
        assert queue.has_room
        queue.put(echo)
    assert not queue.has_room
    while queue:
        assert queue.take() is echo
    ring = Attachment(ATTACH, b"", None, CodecChoice("none", 0))
    long = WaitingFrame(ring, forward(1, 5), np.zeros((MAX_BYTES // 4, 1), np.float32))
    queue.put(long)
    assert not queue.has_room
    assert queue.voids(forward(1, 5))
    assert queue.take() is long
    assert queue.has_room
    assert not queue.voids(forward(1, 5))
