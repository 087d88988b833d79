"""The policy of every ZeroMQ socket of edgepp: options, and how a message is sent and received without blocking."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import zmq

from edgepp.errors import RemoteProtocolError
from edgepp.wire.connection_limits import ConnectionLimiter
from edgepp.wire.security import KeyPair

ZMTP_HEARTBEAT_S = 0.5
"""Interval of the heartbeats of ZMTP; a connection without an answer ends after three."""
CONNECT_TIMEOUT_S = 3.0
"""Timeout of a TCP connection, and of the handshake that follows."""
ZAP_DOMAIN = b"edgepp"
_QUEUE_FRAMES = 1000
_ZERO_COPY_RECEIVE = 10
"""The context option ZMQ_ZERO_COPY_RECV, for which pyzmq has no name."""
_CURVE_BYTES = 64
"""More than CURVE adds to a frame."""
_NO_COPY_BYTES = 1 << 20
"""Frames from this size on are sent without a copy; for shorter ones a copy is as fast."""


def new_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """A socket whose received small messages are copies, and so do not keep the receive buffers of 18 kB alive."""
    with suppress(zmq.ZMQError):  # this libzmq does not have the option
        context.set(_ZERO_COPY_RECEIVE, 0)
    return context.socket(kind)


def configure(sock: zmq.Socket[bytes], max_frame_bytes: int) -> None:
    """Set the options of every socket: queues, heartbeats, timeouts, and the longest received frame."""
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, _QUEUE_FRAMES)
    # Unbounded: with a full queue, libzmq aborts the process at the next heartbeat of a connection that has ended
    # (libzmq issues 3937 and 4364). ConnectionLimiter bounds the bytes instead.
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.setsockopt(zmq.IPV6, 1)
    sock.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes + _CURVE_BYTES)
    sock.setsockopt(zmq.HANDSHAKE_IVL, int(CONNECT_TIMEOUT_S * 1000))
    sock.setsockopt(zmq.HEARTBEAT_IVL, int(ZMTP_HEARTBEAT_S * 1000))
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(3 * ZMTP_HEARTBEAT_S * 1000))


def serve_curve(sock: zmq.Socket[bytes], keys: KeyPair) -> None:
    """Encrypt a listening socket with ``keys``, and leave the admission of peers to the gate of the context."""
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    sock.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # refuse all where no gate answers


def receive_frames(
    sock: zmq.Socket[bytes], max_frames: int, limiter: ConnectionLimiter, *, proven: bool = False
) -> list[zmq.Frame] | None:
    """Next waiting message, of at most ``max_frames`` frames; None where none waits.

    ``proven``: whether a gate has checked the key of the sender; on a plain socket, anyone can set ``User-Id``.

    Raises:
        RemoteProtocolError: The message has more frames; the whole message is discarded.
    """
    parts: list[zmq.Frame] = []
    count = nbytes = 0
    more = True
    while more:
        try:
            frame = sock.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        count += 1
        nbytes += len(frame)
        more = frame.more
        if count <= max_frames:
            parts.append(frame)
    with suppress(zmq.ZMQError):  # a frame without metadata
        limiter.count_taken(int(frame.get(zmq.SRCFD)), count, nbytes, str(frame.get("User-Id")) if proven else "")
    if count > max_frames:
        raise RemoteProtocolError(f"a message of {count} frames where {max_frames} are allowed")
    return parts


def send_frames(sock: zmq.Socket[bytes], parts: Sequence[bytes | memoryview]) -> bool:
    """Send one message; False where the peer is not connected or its queue is full."""
    try:
        for i, part in enumerate(parts):
            more = zmq.SNDMORE if i < len(parts) - 1 else 0
            sock.send(part, zmq.NOBLOCK | more, copy=len(part) < _NO_COPY_BYTES)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True
