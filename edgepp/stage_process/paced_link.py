"""Bulk data on a link, at the pace at which the receiver takes it off its socket.

A receiver computes for seconds, and ends a connection with too much unread data (``wire/connection_limits``). Each
message of bulk data is therefore followed by an ``Echo``, which the receiver returns in order, and a bounded number of
bytes may be on the way. A missing echo also tells that messages were lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgepp.errors import RemoteProtocolError
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.data import Echo
from edgepp.wire.transport import Link

WINDOW_BYTES = 1 << 20
"""Bytes that may be on the way."""
ECHO_WAIT_S = 30.0
"""Time without an echo after which messages count as lost; a receiver may take that long for a step."""
_FIRST_NONCE = 1 << 32
"""The nonces of measurements are below."""
_MAX_MESSAGES = 100
"""Messages that are read at a time."""


@dataclass(frozen=True)
class _Mark:
    nonce: int
    nbytes: int
    sent_s: float


class PacedLink:
    """Counts the bulk data on ``link``, which may carry other messages too. Belongs to the thread of the link."""

    def __init__(self, link: Link, window_bytes: int = WINDOW_BYTES) -> None:
        self.link = link
        self._window_bytes = window_bytes
        self._marks: deque[_Mark] = deque()
        self._nonce = _FIRST_NONCE
        self._on_the_way = 0
        """Bytes of all marks."""
        self._is_broken = False
        """Whether an ``Echo`` could not be sent, as when the connection has ended."""

    @property
    def is_idle(self) -> bool:
        """Whether the receiver has taken everything."""
        return not self._marks and not self._is_broken

    def has_room(self, nbytes: int) -> bool:
        """Whether ``nbytes`` more bytes may be sent now."""
        return self.is_idle or (not self._is_broken and self._on_the_way + nbytes <= self._window_bytes)

    def mark(self, nbytes: int) -> None:
        """Count ``nbytes`` bytes that were just sent, and send the ``Echo`` that shows when they have been taken."""
        if not self.link.send([encode(Echo(self._nonce, reply=False))]):
            self._is_broken = True
            return
        self._marks.append(_Mark(self._nonce, nbytes, time.monotonic()))
        self._on_the_way += nbytes
        self._nonce += 1

    def read_echoes(self, take: Callable[[Message], bool] = lambda _: False) -> bool:
        """Read the echoes that have come back; whether messages were lost, after which the link starts afresh.

        ``take`` gets what else comes, and says whether that was due.

        Raises:
            RemoteProtocolError: The receiver sent something else.
        """
        for _ in range(_MAX_MESSAGES):
            if (frames := self.link.receive()) is None:
                break
            message = decode(frames[0])
            if not isinstance(message, Echo):
                if not take(message):
                    raise RemoteProtocolError(f"a {type(message).__name__} message where an echo was due")
            elif not message.reply:
                raise RemoteProtocolError("an Echo that is no reply")
            elif message.nonce >= _FIRST_NONCE and self._was_lost(message.nonce):
                return self._start_afresh()
        if self._is_broken or (self._marks and time.monotonic() - self._marks[0].sent_s > ECHO_WAIT_S):
            return self._start_afresh()
        return False

    def _was_lost(self, nonce: int) -> bool:
        """Take the mark of an echo away; whether an earlier one is still missing."""
        if not self._marks or nonce < self._marks[0].nonce:
            return False  # of messages that counted as lost
        if nonce != self._marks[0].nonce:
            return True
        self._on_the_way -= self._marks.popleft().nbytes
        return False

    def _start_afresh(self) -> bool:
        self._marks.clear()
        self._on_the_way = 0
        self._is_broken = False
        return True
