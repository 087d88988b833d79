"""Events of libzmq about the connections of a socket, and from these events why a link is refused, in one sentence."""

from __future__ import annotations

import errno
import itertools
import math
import struct
import time
from collections.abc import Mapping

import zmq

from edgepp.wire.connection_limits import ConnectionLimiter

_RETRY_S = 1.0
"""Time from a refusal to the next attempt to connect."""
_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_REASONS: Mapping[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "does not encrypt: it runs with --insecure, or outside of a cluster",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "has another key than this node knows",
}
_monitor_numbers = itertools.count()


def monitor(sock: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Socket on which the ``events`` (a mask of ``zmq.EVENT_*``) of ``sock`` arrive, for ``next_event``.

    The queue is unbounded, since a full one would block all connections of the context. For the same reason the monitor
    must be closed after ``sock``, or after ``sock.disable_monitor()``.
    """
    name = f"inproc://edgepp.monitor.{next(_monitor_numbers)}"
    sock.monitor(name, events)
    pair: zmq.Socket[bytes] = sock.context.socket(zmq.PAIR)
    pair.setsockopt(zmq.RCVHWM, 0)
    pair.setsockopt(zmq.LINGER, 0)
    pair.connect(name)
    return pair


def next_event(pair: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """Next event of a monitor as (event, value), or None where none waits. Does not block."""
    try:
        frames = pair.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
    event, value = struct.unpack("=HI", frames[0])
    return event, value


class HandshakeMonitor:
    """Follows the handshakes of one connecting socket, in the thread of the socket; made before the socket connects."""

    def __init__(
        self, sock: zmq.Socket[bytes], listener: str, timeout_s: float, limiter: ConnectionLimiter, *, encrypts: bool
    ) -> None:
        """Watch ``sock``, which connects to the address ``listener`` and gives up a handshake after ``timeout_s``.

        ``limiter`` gets the connections of ``sock``; ``encrypts`` says whether ``sock`` uses CURVE.
        """
        self._socket = sock
        self._limiter = limiter
        self._listener = listener
        self._timeout_s = timeout_s
        self._encrypts = encrypts
        self._monitor = monitor(sock, _WATCHED)
        self._refusal: str | None = None
        self.succeeded = 0
        """Handshakes that have succeeded: one per connection."""
        self.connected = False
        """Whether there is a connection whose handshake has succeeded."""
        self._connected_s = 0.0
        self._broken_off = 0
        self._retry_s = math.inf

    @property
    def events(self) -> zmq.Socket[bytes]:
        """The socket that becomes readable when something about a connection has changed; ``refusal`` reads it."""
        return self._monitor

    def refusal(self) -> str | None:
        """One sentence from the first failed handshake until a handshake succeeds; else None. Does not block."""
        while (received := next_event(self._monitor)) is not None:
            self._handle(*received)
        return self._refusal

    def retry_due(self) -> bool:
        """Whether it is time to connect again after a refusal; True once per refusal."""
        due = time.monotonic() > self._retry_s
        if due:
            self._retry_s = math.inf
        return due

    def close(self) -> None:
        """Stop watching. Call it before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close()

    def _handle(self, event: int, value: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            self._connected_s = time.monotonic()
            self._limiter.add(value, self._listener)
        elif event == zmq.EVENT_DISCONNECTED:
            self._limiter.remove(value)
            self.connected = False
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusal, self._broken_off, self._retry_s = None, 0, math.inf
            self.succeeded += 1
            self.connected = True
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refuse("does not admit this node's key: it was never invited there, or was revoked")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            reason = _REASONS.get(value, "speaks another protocol than edgepp")
            if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH and not self._encrypts:
                reason = "encrypts, and admits paired machines only"
            self._refuse(reason)
        elif value in (errno.EPIPE, errno.ECONNRESET) and time.monotonic() < self._connected_s + self._timeout_s * 0.9:
            # Later, this side's own timeout ended the handshake: the peer sleeps. The first time, the peer may restart.
            self._broken_off += 1
            if self._broken_off > 1 and self._refusal is None:
                self._refusal = (
                    f"{self._listener} broke off the handshake: its key is another one than this node knows,"
                    " or it does not encrypt"
                )

    def _refuse(self, reason: str) -> None:
        self._refusal = f"{self._listener} {reason}"
        self._retry_s = time.monotonic() + _RETRY_S
