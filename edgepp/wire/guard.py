"""What the connections of one socket may take: their number before they have said anything, and memory.

libzmq reads a message whole before anybody sees it, and limits neither its parts nor their sum; so bytes that the
kernel has received on a connection are held against those that were taken off the socket. One that leaves too many
between the two is shut down, and libzmq drops what it kept of it.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import struct
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)

MOST_SILENT = 128
"""Connections that have not said anything yet; then the oldest one of the host that has most of them goes."""
MOST_CONNECTIONS = 1024
"""Connections of one listener."""
LEAST_BACKLOG_BYTES = 4 << 20
CHECK_S = 0.05
"""From one look at the connections to the next."""
_FRAME_OVERHEAD_BYTES = 64
_HEARTBEATS_BYTES_S = 512
_DESCRIPTORS = 1 << 16
_LINUX_RECEIVED = (socket.IPPROTO_TCP, 11, 256, 128)  # tcp_info.tcpi_bytes_received
_MAC_RECEIVED = (socket.IPPROTO_TCP, 0x106, 256, 88)  # tcp_connection_info.tcpi_rxbytes
_RECEIVED = {"linux": _LINUX_RECEIVED, "darwin": _MAC_RECEIVED}.get(sys.platform)


@dataclass
class _Connection:
    """``taken`` is written by the thread that reads the socket, everything else by the one that checks."""

    host: str
    since_s: float
    taken: int = 0
    allowed: float = 0.0
    """Bytes that count as taken beside those: what the protocol adds, less what was counted for it in excess."""
    heard: bool = False
    ended: bool = False


class Guard:
    """The connections of a socket, by the descriptors that libzmq gave them."""

    def __init__(self, backlog_bytes: int, *, dialled: bool = False) -> None:
        """``backlog_bytes`` may wait on one connection, in whole messages or parts of one.

        ``dialled`` connections were made by this side, others by the other side.
        """
        self._dialled = dialled
        self._backlog_bytes = max(LEAST_BACKLOG_BYTES, backlog_bytes)
        self._connections: dict[int, _Connection] = {}
        self._silent: dict[int, _Connection] = {}
        """Those that have not been heard, oldest first."""
        self._checked_s = 0.0
        self.port: int | None = None
        """The port that all of them have at the listener's end; None while it is not known."""

    def __len__(self) -> int:
        return len(self._connections)

    def accepted(self, descriptor: int, host: str, now_s: float) -> None:
        """Note a new connection; where there are too many, one is shut down."""
        connection = _Connection(host, now_s)
        self._connections[descriptor] = self._silent[descriptor] = connection
        if len(self._silent) > MOST_SILENT or len(self._connections) > MOST_CONNECTIONS:
            self._settle()
        if len(self._silent) > MOST_SILENT:
            most = Counter(one.host for one in self._silent.values()).most_common(1)[0][0]
            self._end(next(number for number, one in self._silent.items() if one.host == most), "it said nothing")
        elif len(self._connections) > MOST_CONNECTIONS:
            self._end(next(iter(self._silent)), f"there are {MOST_CONNECTIONS} connections")

    def closed(self, descriptor: int) -> None:
        """Note that a connection has ended."""
        self._connections.pop(descriptor, None)
        self._silent.pop(descriptor, None)

    def taken(self, descriptor: int, frames: int, nbytes: int) -> None:
        """Note a message that was taken off the socket, in the thread that does so."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.taken += nbytes + frames * _FRAME_OVERHEAD_BYTES
            connection.heard = True

    def check(self, now_s: float) -> None:
        """Shut down every connection on which more waits than may."""
        if self.port is None or now_s - self._checked_s < max(CHECK_S, len(self._connections) * 5e-4):
            return
        gap_s, self._checked_s = min(1.0, now_s - self._checked_s), now_s
        for descriptor, connection in list(self._connections.items()):
            if connection.ended:
                continue
            received = self._received(descriptor)
            if received is None:
                continue
            connection.allowed += gap_s * _HEARTBEATS_BYTES_S
            waiting = received - connection.taken - connection.allowed
            if waiting < 0:
                connection.allowed += waiting  # counted in excess: it may not be saved up
            elif waiting > self._backlog_bytes:
                self._end(descriptor, f"{waiting:.0f} bytes of it wait")

    def _settle(self) -> None:
        """Take those that were heard or have ended off the list of silent ones."""
        for descriptor, connection in list(self._silent.items()):
            if connection.heard or connection.ended:
                del self._silent[descriptor]

    def _received(self, descriptor: int) -> int | None:
        """Bytes that the kernel has received on a connection; None where that is unknown."""
        if _RECEIVED is None:
            return None
        level, option, length, offset = _RECEIVED
        with suppress(OSError), _duplicate(descriptor) as one:
            info = one.getsockopt(level, option, length)
            if len(info) >= offset + 8:
                return int(struct.unpack_from("=Q", info, offset)[0])
        return None

    def _end(self, descriptor: int, why: str) -> None:
        """Shut a connection down; libzmq closes it. A descriptor that is by now something else is left alone."""
        connection = self._connections[descriptor]
        connection.ended = True
        self._silent.pop(descriptor, None)
        with suppress(OSError), _duplicate(descriptor) as one:
            if (one.getpeername() if self._dialled else one.getsockname())[1] == self.port:
                one.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )  # the other side hears of it
                one.shutdown(socket.SHUT_RDWR)
        _LOG.debug("ended a connection of %s: %s", connection.host, why)


def _duplicate(descriptor: int) -> socket.socket:
    """A socket object for one of libzmq's descriptors, closed by itself: libzmq may close its own at any time."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=os.dup(descriptor))


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may; a library that it imports lowers that to 2,048."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS allows less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
