"""Limits on the connections of one socket: their number, and the bytes that wait to be read from them.

libzmq reads a message whole before the application sees the message, and limits neither the number nor the sum of its
frames. The limiter therefore compares the bytes that the kernel has received on a connection with the bytes that were
taken off the socket; the difference is the backlog. A connection with too large a backlog is shut down, and libzmq
discards what it kept for the connection. The same goes for the fullest connections of one peer, and of all peers, when
their backlogs together are too large.
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

log = logging.getLogger("edgepp.wire")

MAX_SILENT_CONNECTIONS = 128
"""Connections that have sent no message yet; beyond that, the oldest one of the host with most of them is shut down."""
MAX_CONNECTIONS = 1024
"""Connections of one listener; beyond that, the oldest one of the peer with most of them is shut down."""
MIN_BACKLOG_BYTES = 1 << 20
MAX_BACKLOGS_PER_PEER = 2
"""Limit on the sum of the backlogs of one key or one network, in limits of one connection."""
MAX_BACKLOGS_PER_SOCKET = 4
"""Limit on the sum of the backlogs of one socket, in limits of one connection."""
CHECK_INTERVAL_S = 0.05
"""Shortest time between two checks of all connections."""
_CHECK_S_PER_CONNECTION = 1e-4
"""Shortest time between two checks, per connection: a check takes a tenth of that."""
_FRAME_OVERHEAD_BYTES = 64
"""More than ZMTP and CURVE add to a frame."""
_HEARTBEAT_BYTES_PER_S = 512
_MAX_DESCRIPTORS = 1 << 16
_LINUX_RECEIVED = (socket.IPPROTO_TCP, 11, 256, 128)  # tcp_info.tcpi_bytes_received
_MAC_RECEIVED = (socket.IPPROTO_TCP, 0x106, 256, 88)  # tcp_connection_info.tcpi_rxbytes
_RECEIVED = {"linux": _LINUX_RECEIVED, "darwin": _MAC_RECEIVED}.get(sys.platform)


@dataclass
class _Connection:
    """State of one connection.

    ``taken_bytes``, ``key`` and ``has_sent`` are written by the thread that reads the socket, all else by the thread
    that checks.
    """

    network: str
    key: str = ""
    """Key that the peer has proved; empty before the first message, and on a plain socket."""
    taken_bytes: int = 0
    allowance_bytes: float = 0.0
    """Bytes that count as taken besides ``taken_bytes``: overhead of the protocol, lowered when too high."""
    backlog_bytes: int = 0
    has_sent: bool = False
    is_ended: bool = False

    @property
    def peers(self) -> tuple[str, ...]:
        """Groups over which backlogs are summed: network and key of the other side."""
        return (self.network, self.key) if self.key else (self.network,)


class ConnectionLimiter:
    """Limits on the connections of one socket, each identified by its file descriptor in libzmq."""

    def __init__(self, backlog_bytes: int, *, dialled: bool = False) -> None:
        """Limit the backlog of one connection to ``backlog_bytes``, at least ``MIN_BACKLOG_BYTES``.

        ``dialled``: whether this side made the connections.
        """
        self._dialled = dialled
        self._backlog_bytes = max(MIN_BACKLOG_BYTES, backlog_bytes)
        self._connections: dict[int, _Connection] = {}
        self._silent: dict[int, _Connection] = {}
        """Connections that have sent no message, oldest first."""
        self._taken_early: Counter[int] = Counter()
        """Bytes taken from connections before ``add``: libzmq reports connections on another socket than messages."""
        self._checked_s = 0.0
        self.port: int | None = None
        """Port of the listener's end of every connection; None while unknown."""

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, descriptor: int, host: str) -> None:
        """Register a new connection from ``host``; shut one connection down where there are too many."""
        connection = _Connection(network_of(host), taken_bytes=self._taken_early.pop(descriptor, 0))
        self._connections[descriptor] = self._silent[descriptor] = connection
        if len(self._silent) > MAX_SILENT_CONNECTIONS or len(self._connections) > MAX_CONNECTIONS:
            self._prune_silent()
        if len(self._silent) > MAX_SILENT_CONNECTIONS:
            self._end_one(self._silent, "it sent no message")
        elif len(self._connections) > MAX_CONNECTIONS:
            self._end_one(self._connections, f"there are {MAX_CONNECTIONS} connections")

    def remove(self, descriptor: int) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(descriptor, None)
        self._silent.pop(descriptor, None)
        self._taken_early.pop(descriptor, None)

    def count_taken(self, descriptor: int, frames: int, nbytes: int, key: str) -> None:
        """Count a message of ``frames`` frames and ``nbytes`` bytes that was read, in the reading thread.

        ``key`` is the proven key of the sender, or empty.
        """
        taken_bytes = nbytes + frames * _FRAME_OVERHEAD_BYTES
        connection = self._connections.get(descriptor)
        if connection is None:
            self._taken_early[descriptor] += taken_bytes
            return
        connection.taken_bytes += taken_bytes
        connection.key = key
        connection.has_sent = True

    def check(self, now_s: float) -> None:
        """Shut down connections whose backlog, or whose peer's sum of backlogs, exceeds its limit.

        ``now_s`` is a monotonic time; calls that come too early do nothing.
        """
        if self.port is None or now_s - self._checked_s < max(
            CHECK_INTERVAL_S, len(self._connections) * _CHECK_S_PER_CONNECTION
        ):
            return
        gap_s, self._checked_s = min(1.0, now_s - self._checked_s), now_s
        for descriptor, connection in list(self._connections.items()):
            if connection.is_ended:
                continue
            received = self._received(descriptor)
            if received is None:
                continue
            connection.allowance_bytes += gap_s * _HEARTBEAT_BYTES_PER_S
            backlog = received - connection.taken_bytes - connection.allowance_bytes
            connection.backlog_bytes = max(0, int(backlog))
            if backlog < 0:
                connection.allowance_bytes += backlog  # an unused allowance is not saved up
            elif backlog > self._backlog_bytes:
                self._end(descriptor, f"its backlog is {backlog:.0f} bytes")
        self._limit_sums()

    def _limit_sums(self) -> None:
        """Shut down the fullest connections of each peer, then of the socket, until the sums are within the limits."""
        live = [(number, one) for number, one in self._connections.items() if one.backlog_bytes and not one.is_ended]
        total = sum(one.backlog_bytes for _, one in live)
        if total <= MAX_BACKLOGS_PER_PEER * self._backlog_bytes:
            return
        sums: Counter[str] = Counter()
        for _, one in live:
            for peer in one.peers:
                sums[peer] += one.backlog_bytes
        live.sort(key=lambda pair: (max(sums[peer] for peer in pair[1].peers), pair[1].backlog_bytes), reverse=True)
        for number, one in live:
            if (largest := max(sums[peer] for peer in one.peers)) > MAX_BACKLOGS_PER_PEER * self._backlog_bytes:
                self._end(number, f"the backlogs of its peer are {largest} bytes")
                total -= one.backlog_bytes
                for peer in one.peers:
                    sums[peer] -= one.backlog_bytes
        for number, one in live:
            if total > MAX_BACKLOGS_PER_SOCKET * self._backlog_bytes and not one.is_ended:
                self._end(number, f"the backlogs of all peers are {total} bytes")
                total -= one.backlog_bytes

    def _end_one(self, among: Mapping[int, _Connection], why: str) -> None:
        """Shut down the oldest connection in ``among`` of the peer (key, or network without key) with most of them."""
        live = [(number, one.key or one.network) for number, one in among.items() if not one.is_ended]
        most = Counter(peer for _, peer in live).most_common(1)
        if most:
            self._end(next(number for number, peer in live if peer == most[0][0]), why)

    def _prune_silent(self) -> None:
        """Remove connections that have sent a message or ended from the silent ones."""
        for descriptor, connection in list(self._silent.items()):
            if connection.has_sent or connection.is_ended:
                del self._silent[descriptor]

    def _received(self, descriptor: int) -> int | None:
        """Bytes that the kernel has received on a connection; None on systems that do not tell."""
        if _RECEIVED is None:
            return None
        level, option, length, offset = _RECEIVED
        with suppress(OSError), _duplicate(descriptor) as one:
            info = one.getsockopt(level, option, length)
            if len(info) >= offset + 8:
                return int(struct.unpack_from("=Q", info, offset)[0])
        return None

    def _end(self, descriptor: int, why: str) -> None:
        """Shut a connection down, so that libzmq closes it, unless the descriptor was reused for another file."""
        connection = self._connections[descriptor]
        connection.is_ended = True
        self._silent.pop(descriptor, None)
        with suppress(OSError), _duplicate(descriptor) as one:
            if (one.getpeername() if self._dialled else one.getsockname())[1] == self.port:
                # Closing with a reset tells the other side at once.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
        log.debug("shut down a connection of %s: %s", connection.network, why)


def network_of(host: str) -> str:
    """Network that one machine can have many addresses in: the /64 of an IPv6 address, else the address itself.

    Link-local IPv6 addresses and text that is no IP address are returned as they are.
    """
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if ip.version == 4 or ip.is_link_local:
        return str(ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))


def _duplicate(descriptor: int) -> socket.socket:
    """Socket object over a duplicate of one of libzmq's descriptors, since libzmq may close its own at any time."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=os.dup(descriptor))


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit, at most 65,536: an imported library lowers it to 2,048."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS allows less than the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
