"""Messages of the data socket that the compute thread has received and not handled yet. Pure: no sockets.

Reading ahead shows what is behind a frame before the frame is computed. Where guesses were wrong, the coordinator sends
the drawn token at the position of the first wrong guess: that voids every earlier frame of the sequence from this
position on, and a stage need not compute a void frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.attachment import Attachment
from edgepp.stage_process.frames import Frame, sequences_of, spans_of
from edgepp.wire.frame_marks import clock_us, computed
from edgepp.wire.messages.data import REPLAYED, Echo, Forward, Kept, KvPiece
from edgepp.wire.rank_marks import with_ranks
from edgepp.wire.transport import Sender

MAX_MESSAGES = 64
"""Messages that may wait; more stay in the socket, where ``wire/connection_limits`` bounds them."""
MAX_BYTES = 4 << 20
"""Bytes of waiting messages from which on no further message is received."""


class WaitingFrame(NamedTuple):
    """A frame that was found sound."""

    ring: Attachment
    """The ring in which it arrived."""
    frame: Frame
    hidden: Array
    received_us: int = 0
    """When it was taken from the socket, and when it was checked and decoded, by ``wire.frame_marks.clock_us``."""
    checked_us: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the hidden states."""
        return self.hidden.nbytes

    def marked(self, frame: Frame, begun_s: float, ranks: Sequence[tuple[int, bytes]]) -> Frame:
        """``frame``, the traced result of this one, with the times of this stage, computed since ``begun_s``.

        ``ranks`` are the times of its ranks.
        """
        trace = computed(self.frame.trace, self.received_us, self.checked_us, int(begun_s * 1e6), clock_us())
        if ranks:
            frame = frame._replace(ranks=with_ranks(frame.ranks, self.ring.stage, ranks, len(sequences_of(frame))))
        return frame._replace(trace=trace)


class WaitingMessage(NamedTuple):
    """A message that is no frame."""

    sender: Sender
    message: KvPiece | Kept | Echo
    parts: list[memoryview]
    """What came after the header."""

    @property
    def nbytes(self) -> int:
        """Bytes after the header."""
        return sum(map(len, self.parts))


class MessageQueue:
    """Received messages, oldest first. Belongs to the compute thread."""

    def __init__(self) -> None:
        self._waiting: deque[WaitingFrame | WaitingMessage] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether another message may be received."""
        return len(self._waiting) < MAX_MESSAGES and self._nbytes < MAX_BYTES

    def put(self, message: WaitingFrame | WaitingMessage) -> None:
        """Add a message."""
        self._waiting.append(message)
        self._nbytes += message.nbytes

    def take(self) -> WaitingFrame | WaitingMessage:
        """Remove and return the oldest message."""
        message = self._waiting.popleft()
        self._nbytes -= message.nbytes
        return message

    def voids(self, frame: Frame) -> bool:
        """Whether a message in the queue voids ``frame``, which was received before them."""
        return is_void(frame, (one.frame for one in self._waiting if isinstance(one, WaitingFrame)))


def is_void(frame: Frame, later: Iterable[Frame]) -> bool:
    """Whether for each sequence of ``frame`` a ``later`` frame begins at the same position or before.

    Replays neither void nor are void, and a frame that another sequence begins with, or that begins as a copy, is not.
    """
    if isinstance(frame, Forward) and (frame.step == REPLAYED or frame.source):
        return False
    left: dict[int, int] | None = None
    for one in later:
        if one.epoch != frame.epoch or (isinstance(one, Forward) and one.step == REPLAYED):
            continue
        if left is None:
            left = {sequence: position for sequence, position, _ in spans_of(frame)}
        if isinstance(one, Forward) and one.source and one.source in left:
            return False
        for sequence, position, _ in spans_of(one):
            if position <= left.get(sequence, -1):
                del left[sequence]
        if not left:
            return True
    return False
