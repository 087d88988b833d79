"""Exchange of partial sums between ranks of one machine, over pairs of sockets that their parent made.

Such a pair has no address, so nobody else can connect to it and nothing leaves the machine: it needs no encryption.
A sum takes a tenth of the time that it takes over ZeroMQ (bench/LOG.md), whose threads want cores that the ranks use.

A frame is a head (step, number of the sum or ``_FAULT``, bytes) and float32 numbers. Both sides send before they
receive, so a socket takes what it can at a time, and the rest between turns of receiving.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np

from edgepp.errors import RemoteProtocolError
from edgepp.model.weights.checkpoint import Array
from edgepp.wire.mailbox import wait_awake

_HEAD = struct.Struct("<qII")
_FAULT = 0xFFFF_FFFF
_BUFFER_BYTES = 1 << 20
_POLL_MS = 100


class RankEnded(Exception):  # noqa: N818 - the group makes an error of it
    """The other end of a pair has been closed, or has sent what it may not send."""

    def __init__(self, rank: int, problem: str = "") -> None:
        self.rank = rank
        self.problem = problem


class FaultSeen(Exception):  # noqa: N818 - the group makes an error of it
    """Another rank cannot go on with the step."""

    def __init__(self, rank: int) -> None:
        self.rank = rank


class LocalSums:
    """One rank's sockets to all others. All methods belong to one thread."""

    def __init__(self, sockets: Mapping[int, socket.socket], *, awake: bool) -> None:
        """``sockets`` are those to the other ranks; ``awake``: whether to wait without sleeping."""
        self._pairs = [_Pair(rank, sock) for rank, sock in sorted(sockets.items())]
        self._awake = awake

    def exchange(
        self, step: int, number: int, mine: Array, watch: Callable[[], None] = lambda: None
    ) -> dict[int, Array]:
        """Send ``mine`` (T, D) as the sum ``number`` of a step to all other ranks; what they sent, by rank.

        ``watch`` is called while that takes long: a process that is stopped keeps its sockets.

        Raises:
            FaultSeen: another rank cannot go on with the step.
            RankEnded: another rank is gone, or is not at the same point.
        """
        for pair in self._pairs:
            pair.begin(step, number, mine)
        waiting = list(self._pairs)

        def come() -> bool:
            waiting[:] = [pair for pair in waiting if not pair.turn()]
            return not waiting

        if not (self._awake and wait_awake(come)):
            while not come():
                _wait_for(waiting)
                watch()
        return {pair.rank: pair.take(mine.shape) for pair in self._pairs}

    def fail(self, step: int) -> None:
        """Tell all other ranks that this one cannot go on with a step."""
        for pair in self._pairs:
            with suppress(RankEnded):  # the next order of rank 0, or its absence, tells more
                pair.send(_HEAD.pack(step, _FAULT, 0))

    def close(self) -> None:
        """Close all sockets."""
        for pair in self._pairs:
            pair.sock.close()


def _wait_for(pairs: list[_Pair]) -> None:
    poller = select.poll()
    for pair in pairs:
        poller.register(pair.sock, select.POLLIN | (select.POLLOUT if pair.has_unsent else 0))
    poller.poll(_POLL_MS)


class _Pair:
    """The socket to one other rank, with what is under way in both directions."""

    def __init__(self, rank: int, sock: socket.socket) -> None:
        self.rank, self.sock = rank, sock
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._unsent = bytearray()
        self._got = bytearray(_HEAD.size)
        self._filled = self._left = 0
        """Bytes of the present frame that have come, and bytes of an earlier frame that are still to come."""
        self._expected = (0, 0)

    @property
    def has_unsent(self) -> bool:
        """Whether the socket has not taken all that was to be sent."""
        return bool(self._unsent)

    def begin(self, step: int, number: int, mine: Array) -> None:
        """Send a partial sum, and expect the other rank's of the same shape."""
        self._expected = step, number
        head = bytes(self._got[: min(self._filled, _HEAD.size)])
        if self._filled > _HEAD.size:  # of a step that was given up while the frame came
            self._left += _HEAD.size + _HEAD.unpack(head)[2] - self._filled
            head = b""
        self._got = bytearray(_HEAD.size + mine.nbytes)
        self._got[: len(head)] = head
        self._filled = len(head)
        self.send(_HEAD.pack(step, number, mine.nbytes), mine.data.cast("B"))

    def send(self, head: bytes, data: memoryview | bytes = b"") -> None:
        """Send as much as the socket takes, behind what it has not taken yet; the rest is kept.

        Raises:
            RankEnded: the other rank is gone.
        """
        if not self._unsent:
            sent = self._sent([head, data])
            if sent == len(head) + len(data):
                return
            head, data = head[sent:], data[max(0, sent - len(head)) :]
        self._unsent += head
        self._unsent += data

    def turn(self) -> bool:
        """Send and receive what is possible now; whether the other rank's frame is whole.

        Raises:
            FaultSeen: the other rank cannot go on with the step.
            RankEnded: the other rank is gone, or is not at the same point.
        """
        if self._unsent:
            del self._unsent[: self._sent([self._unsent])]
        while self._receive():
            self._look()
            if self._filled == len(self._got):
                return not self._unsent
        return self._filled == len(self._got) and not self._unsent

    def take(self, shape: tuple[int, ...]) -> Array:
        """The frame that is whole, as float32 numbers of ``shape``."""
        self._filled = 0
        return np.frombuffer(self._got, np.float32, offset=_HEAD.size).reshape(shape)

    def _sent(self, parts: list[bytes | bytearray | memoryview]) -> int:
        try:
            return self.sock.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise RankEnded(self.rank) from error

    def _receive(self) -> bool:
        """Receive some bytes; False where none have come."""
        if self._filled == len(self._got):
            return False
        into = memoryview(self._got)[self._filled :] if not self._left else memoryview(bytearray(self._left))
        try:
            count = self.sock.recv_into(into)
        except BlockingIOError:
            return False
        except OSError as error:
            raise RankEnded(self.rank) from error
        if not count:
            raise RankEnded(self.rank)
        if self._left:
            self._left -= count
        else:
            self._filled += count
        return True

    def _look(self) -> None:
        """Check the head of the present frame, and pass over frames of steps that failed."""
        while not self._left and self._filled >= _HEAD.size:
            step, number, nbytes = _HEAD.unpack_from(self._got)
            if (step, number) == self._expected and nbytes == len(self._got) - _HEAD.size:
                return
            if step == self._expected[0] and number == _FAULT:
                self._pass_over(_HEAD.size)
                raise FaultSeen(self.rank)
            if step >= self._expected[0]:
                raise RankEnded(self.rank, f"sent sum {number} of step {step} in place of {self._expected}")
            self._pass_over(_HEAD.size + nbytes)

    def _pass_over(self, nbytes: int) -> None:
        beyond = self._got[nbytes : self._filled]
        self._left = max(0, nbytes - self._filled)
        self._got[: len(beyond)] = beyond
        self._filled = len(beyond)


def adopted(descriptors: Mapping[int, int]) -> dict[int, socket.socket]:
    """The sockets with these inherited ``descriptors``, by rank.

    Raises:
        RemoteProtocolError: a descriptor is no socket.
    """
    try:
        return {rank: socket.socket(fileno=descriptor) for rank, descriptor in descriptors.items()}
    except OSError as error:
        raise RemoteProtocolError(f"the parent gave no socket to another rank: {error}") from error
