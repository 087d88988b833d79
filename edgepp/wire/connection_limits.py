"""What the connections of one socket may take: their number before they have said anything, and memory.

libzmq reads a message whole before anybody sees it, and limits neither its parts nor their sum; so bytes that the
kernel has received on a connection are held against those that were taken off the socket. A connection on which too
many wait between the two is shut down, and libzmq drops what it kept of it; so are the fullest connections of a peer,
and of all peers, where too many wait on them together.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import resource
import socket
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)

MOST_SILENT = 128
"""Connections that have not said anything yet; then the oldest one of the host that has most of them goes."""
MOST_CONNECTIONS = 1024
"""Connections of one listener; then the oldest one of the peer that has most of them goes."""
LEAST_BACKLOG_BYTES = 1 << 20
PEER_BACKLOGS = 2
"""Times the bytes of one connection that may wait on all connections of one key or one network."""
SOCKET_BACKLOGS = 4
"""Times the bytes of one connection that may wait on all connections of one socket."""
CHECK_S = 0.05
"""From one look at the connections to the next."""
_LOOK_S = 1e-4
"""From one look to the next for each connection: looking takes a tenth of it."""
_FRAME_OVERHEAD_BYTES = 64
_HEARTBEATS_BYTES_S = 512
_DESCRIPTORS = 1 << 16
_LINUX_RECEIVED = (socket.IPPROTO_TCP, 11, 256, 128)  # tcp_info.tcpi_bytes_received
_MAC_RECEIVED = (socket.IPPROTO_TCP, 0x106, 256, 88)  # tcp_connection_info.tcpi_rxbytes
_RECEIVED = {"linux": _LINUX_RECEIVED, "darwin": _MAC_RECEIVED}.get(sys.platform)


@dataclass
class _Connection:
    """``taken`` is written by the thread that reads the socket, everything else by the one that checks."""

    network: str
    key: str = ""
    """What the other side has proved; empty before its first message, and on a plain socket."""
    taken: int = 0
    allowed: float = 0.0
    """Bytes that count as taken beside those: what the protocol adds, less what was counted for it in excess."""
    waiting: int = 0
    heard: bool = False
    ended: bool = False

    @property
    def peers(self) -> tuple[str, ...]:
        """By what its bytes are added to those of other connections."""
        return (self.network, self.key) if self.key else (self.network,)


class ConnectionLimiter:
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

    def accepted(self, descriptor: int, host: str) -> None:
        """Note a new connection; where there are too many, one is shut down."""
        connection = _Connection(network_of(host))
        self._connections[descriptor] = self._silent[descriptor] = connection
        if len(self._silent) > MOST_SILENT or len(self._connections) > MOST_CONNECTIONS:
            self._settle()
        if len(self._silent) > MOST_SILENT:
            self._end_one(self._silent, "it said nothing")
        elif len(self._connections) > MOST_CONNECTIONS:
            self._end_one(self._connections, f"there are {MOST_CONNECTIONS} connections")

    def closed(self, descriptor: int) -> None:
        """Note that a connection has ended."""
        self._connections.pop(descriptor, None)
        self._silent.pop(descriptor, None)

    def taken(self, descriptor: int, frames: int, nbytes: int, key: str) -> None:
        """Note a message that was taken off the socket, in the thread that does so; ``key`` proved its sender."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.taken += nbytes + frames * _FRAME_OVERHEAD_BYTES
            connection.key = key
            connection.heard = True

    def check(self, now_s: float) -> None:
        """Shut down every connection on which more waits than may, and those with which a peer exceeds its part."""
        if self.port is None or now_s - self._checked_s < max(CHECK_S, len(self._connections) * _LOOK_S):
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
            connection.waiting = max(0, int(waiting))
            if waiting < 0:
                connection.allowed += waiting  # counted in excess: it may not be saved up
            elif waiting > self._backlog_bytes:
                self._end(descriptor, f"{waiting:.0f} bytes of it wait")
        self._bound_peers()

    def _bound_peers(self) -> None:
        """Shut down the fullest connections of a peer, then of all, where too much waits on all of them together."""
        live = [(number, one) for number, one in self._connections.items() if one.waiting and not one.ended]
        total = sum(one.waiting for _, one in live)
        if total <= PEER_BACKLOGS * self._backlog_bytes:
            return
        sums: Counter[str] = Counter()
        for _, one in live:
            for peer in one.peers:
                sums[peer] += one.waiting
        live.sort(key=lambda pair: (max(sums[peer] for peer in pair[1].peers), pair[1].waiting), reverse=True)
        for number, one in live:
            if (most := max(sums[peer] for peer in one.peers)) > PEER_BACKLOGS * self._backlog_bytes:
                self._end(number, f"{most} bytes of its peer wait")
                total -= one.waiting
                for peer in one.peers:
                    sums[peer] -= one.waiting
        for number, one in live:
            if total > SOCKET_BACKLOGS * self._backlog_bytes and not one.ended:
                self._end(number, f"{total} bytes of all peers wait")
                total -= one.waiting

    def _end_one(self, among: Mapping[int, _Connection], why: str) -> None:
        """Shut down the oldest connection of the key, or else the network, that has most of them."""
        live = [(number, one.key or one.network) for number, one in among.items() if not one.ended]
        most = Counter(peer for _, peer in live).most_common(1)
        if most:
            self._end(next(number for number, peer in live if peer == most[0][0]), why)

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
        _LOG.debug("ended a connection of %s: %s", connection.network, why)


def network_of(host: str) -> str:
    """What one machine can have many addresses of: of IPv6 the first half counts, but for link-local ones."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if ip.version == 4 or ip.is_link_local:
        return str(ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))


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
