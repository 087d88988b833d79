"""Why a link is refused: libzmq's events of its handshakes, put into one sentence."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Mapping

import zmq

from edgepp.wire.connection_limits import ConnectionLimiter
from edgepp.wire.security import monitor, next_event

_RETRY_S = 1.0  # after a refusal
_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_FAULTS: Mapping[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "does not encrypt: it runs with --insecure, or is no part of a cluster",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "has another key than this node knows",
}


class HandshakeMonitor:
    """Those of one socket, in the thread that owns it; made before the socket connects."""

    def __init__(
        self, sock: zmq.Socket[bytes], listener: str, patience_s: float, guard: ConnectionLimiter, *, encrypts: bool
    ) -> None:
        """Watch ``sock``, which gives up a handshake with the ``listener`` at that address after ``patience_s``.

        ``guard`` hears of its connections.
        """
        self._socket = sock
        self._guard = guard
        self._listener = listener
        self._patience_s = patience_s
        self._encrypts = encrypts
        self._monitor = monitor(sock, _WATCHED)
        self._refusal: str | None = None
        self._connected_s = 0.0
        self._broken_off = 0
        self._retry_s = math.inf

    def refusal(self) -> str | None:
        """One sentence once a handshake has failed, until one succeeds; None while nothing is known."""
        while (happened := next_event(self._monitor)) is not None:
            self._learn(*happened)
        return self._refusal

    def asks_for_retry(self) -> bool:
        """Whether a refusal is old enough to connect again; once for each."""
        due = time.monotonic() > self._retry_s
        if due:
            self._retry_s = math.inf
        return due

    def close(self) -> None:
        """Watch no more; before the socket is closed."""
        self._socket.disable_monitor()
        self._monitor.close()

    def _learn(self, event: int, value: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            self._connected_s = time.monotonic()
            self._guard.accepted(value, self._listener)
        elif event == zmq.EVENT_DISCONNECTED:
            self._guard.closed(value)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusal, self._broken_off, self._retry_s = None, 0, math.inf
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refuse("does not admit this node's key: it was never invited there, or was revoked")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            fault = _FAULTS.get(value, "speaks another protocol than edgepp")
            if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH and not self._encrypts:
                fault = "encrypts, and admits paired machines only"
            self._refuse(fault)
        elif value in (errno.EPIPE, errno.ECONNRESET) and time.monotonic() < self._connected_s + self._patience_s * 0.9:
            # Later it is our own patience that ended: that is a machine asleep. Once, it may be a restart.
            self._broken_off += 1
            if self._broken_off > 1 and self._refusal is None:
                self._refusal = (
                    f"{self._listener} broke off the handshake: its key is another one than this node knows,"
                    " or it does not encrypt"
                )

    def _refuse(self, fault: str) -> None:
        self._refusal = f"{self._listener} {fault}"
        self._retry_s = time.monotonic() + _RETRY_S
