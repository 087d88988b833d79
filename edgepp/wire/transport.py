"""The two kinds of sockets of edgepp, both with the policy of ``socket_policy``.

A ``Listener`` binds and answers many peers; a ``Link`` connects to one listener. Both are non-blocking with bounded
queues, discard unsent messages when closed, and notice a dead connection within two seconds. With keys both encrypt, by
CURVE, and the ``Gate`` of the listener's context (``security``) admits the other side. A socket belongs to one thread.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import zmq

from edgepp.errors import LocalProtocolError, RemoteProtocolError, UsageError
from edgepp.wire.address import Address
from edgepp.wire.connection_limits import CHECK_INTERVAL_S, ConnectionLimiter
from edgepp.wire.handshake_monitor import HandshakeMonitor
from edgepp.wire.messages import MAX_FRAMES
from edgepp.wire.security import Gate, KeyPair, Pinned, bare_host
from edgepp.wire.socket_policy import CONNECT_TIMEOUT_S, configure, new_socket, receive_frames, send_frames, serve_curve
from edgepp.wire.traffic import Traffic


class Sender(NamedTuple):
    """Sender of a received message."""

    route: bytes
    """Routing id of the sender's connection, for ``Listener.send``."""
    key: str
    """Public key that the sender has proved; empty on a plain socket."""
    host: str
    """IP address of the sender."""


class Listener:
    """A bound ROUTER socket: receives from all peers, and sends to a peer by the route of its connection."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        max_frame_bytes: int,
        keys: KeyPair | None = None,
        max_queued_messages: int | None = None,
    ) -> None:
        """Bind ``address``; host ``*`` is every interface, IPv6 and IPv4.

        With ``keys``, the socket is encrypted and the gate of the context decides which peers are admitted.
        ``max_frame_bytes`` bounds a received frame, ``max_queued_messages`` the unsent messages per peer.

        Raises:
            UsageError: The address is taken, or not an address of this machine.
            LocalProtocolError: There are keys, but the context has no gate.
        """
        gate = Gate.of(context)
        if keys is not None and gate is None:
            raise LocalProtocolError("an encrypted listener needs a gate in its context")
        self.socket = new_socket(context, zmq.ROUTER)
        configure(self.socket, max_frame_bytes)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._gate = gate if keys is not None else None
        """None for a plain socket."""
        if max_queued_messages is not None:
            self.socket.setsockopt(zmq.SNDHWM, max_queued_messages)
        self._limiter = ConnectionLimiter(2 * max_frame_bytes)
        if keys is not None:
            serve_curve(self.socket, keys)
        if gate is not None:
            gate.watch(self.socket, self._limiter, encrypted=keys is not None)
        try:
            _bind(self.socket, address)
        except zmq.ZMQError as error:
            self.socket.close()
            is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
            raise UsageError(
                f"cannot listen on {address}: {error.strerror.partition(' (addr')[0]}",
                "choose another port, or 0 for any free one"
                if is_port
                else "give an address of this machine, which `edgepp doctor` lists, or 0.0.0.0 for all of them",
            ) from error
        endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = Address(address.host, int(endpoint.rpartition(":")[2]))
        self.traffic = Traffic()
        self._limiter.port = self.address.port

    def receive(self) -> tuple[Sender, list[memoryview]] | None:
        """Next waiting message as (sender, frames), or None. Does not block.

        Raises:
            RemoteProtocolError: The message, now discarded, has too many frames or none, or a revoked sender.
        """
        received = self.receive_even_revoked()
        if received is not None and self._gate is not None and not self._gate.admits(received[0].key):
            raise RemoteProtocolError(f"a message of {received[0].host}, whose key was revoked")
        return received

    def receive_even_revoked(self) -> tuple[Sender, list[memoryview]] | None:
        """Next waiting message as (sender, frames), or None; also from a sender whose key was revoked meanwhile.

        Raises:
            RemoteProtocolError: The message has too many frames or none; the message is discarded.
        """
        parts = receive_frames(self.socket, MAX_FRAMES + 1, self._limiter, proven=self._gate is not None)
        if parts is None:
            return None
        if len(parts) < 2:
            raise RemoteProtocolError("a message without a header")
        route = parts[0]
        key = str(route.get("User-Id")) if self._gate is not None else ""
        sender = Sender(route.bytes, key, bare_host(str(route.get("Peer-Address"))))
        frames = [part.buffer for part in parts[1:]]
        self.traffic.received_bytes += sum(map(len, frames))
        return sender, frames

    def send(self, route: bytes, parts: Sequence[bytes | memoryview]) -> bool:
        """Send to one peer; False where the peer is gone or its queue is full. Does not block."""
        sent = send_frames(self.socket, [route, *parts])
        self.traffic.sent_bytes += sum(map(len, parts)) if sent else 0
        return sent

    def close(self, linger_s: float = 0.0) -> None:
        """Stop listening after ``linger_s`` seconds, in which peers can receive the last messages sent to them.

        A message that a peer's ``Link`` has not received by then may be lost, although it was sent.
        """
        time.sleep(linger_s)
        self.socket.close(0)


class Link:
    """A DEALER socket connected to one listener. Reconnects by itself, after a refusal as long as the link is used.

    When a connection ends, libzmq drops the messages that arrived by it and were not received yet (a consequence of
    ZMQ_IMMEDIATE). So a peer whose last message matters waits for a reply, or for the other side to close first.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        max_frame_bytes: int,
        route: bytes | None = None,
        pinned: Pinned | None = None,
    ) -> None:
        """Begin to connect to ``address``, encrypted with the keys ``pinned``, or plain for None.

        ``max_frame_bytes`` bounds a received frame. ``route`` is the routing id of the connection at the
        listener, which chooses one unless given.

        Raises:
            UsageError: The address cannot be connected to.
        """
        self.address = address
        self.traffic = Traffic()
        self._reconnects = 0
        self._limiter = ConnectionLimiter(2 * max_frame_bytes, dialled=True)
        self._limiter.port = address.port
        self._checked_s = 0.0
        self.socket = new_socket(context, zmq.DEALER)
        configure(self.socket, max_frame_bytes)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.CONNECT_TIMEOUT, int(CONNECT_TIMEOUT_S * 1000))
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if route is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, route)
        if pinned is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, pinned.server.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, pinned.own.public.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, pinned.own.secret.encode())
        self._handshakes = HandshakeMonitor(
            self.socket, str(address), CONNECT_TIMEOUT_S, self._limiter, encrypts=pinned is not None
        )
        try:
            self.socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(f"cannot connect to {address}: {error.strerror}") from error

    def send(self, parts: Sequence[bytes | memoryview], wait_s: float = 0.0) -> bool:
        """Send; False where the other side is not connected, or its queue is full, for ``wait_s`` seconds."""
        self.enforce_limits()
        if self._send(parts):
            return True
        self.refusal()
        return wait_s > 0 and bool(self.socket.poll(int(wait_s * 1000), zmq.POLLOUT)) and self._send(parts)

    def receive(self, wait_s: float = 0.0) -> list[memoryview] | None:
        """Frames of the next message, or None where none arrives for ``wait_s`` seconds.

        Raises:
            RemoteProtocolError: The message has too many frames; the message is discarded.
        """
        self.enforce_limits()
        if wait_s > 0 and not self.socket.poll(int(wait_s * 1000), zmq.POLLIN):
            return None
        parts = receive_frames(self.socket, MAX_FRAMES, self._limiter)
        if parts is None:
            return None
        frames = [part.buffer for part in parts]
        self.traffic.received_bytes += sum(map(len, frames))
        return frames

    @property
    def events(self) -> zmq.Socket[bytes]:
        """The socket that becomes readable when a connection has begun or ended; ``is_connected`` reads it."""
        return self._handshakes.events

    def is_connected(self) -> bool:
        """Whether there is a connection, up to the newest event. Does not block."""
        self.refusal()
        return self._handshakes.connected

    def enforce_limits(self) -> None:
        """Shut the connection down where too much is unread. Sending and receiving call this too."""
        now_s = time.monotonic()
        if now_s - self._checked_s >= CHECK_INTERVAL_S:
            self._checked_s = now_s
            self._follow_handshakes()
            self._limiter.check(now_s)

    def close(self, linger_s: float = 0.0) -> None:
        """Disconnect; unsent messages are discarded after ``linger_s`` seconds."""
        self._handshakes.close()
        self.socket.close(int(linger_s * 1000))

    def refusal(self) -> str | None:
        """One sentence from the first failed handshake until a handshake succeeds; else None. Does not block.

        Call this, or ``send``, regularly: libzmq gives up on a listener that refused, and this call reconnects after a
        second.
        """
        refusal = self._follow_handshakes()
        if self._handshakes.retry_due():
            with suppress(zmq.ZMQError):  # libzmq may have forgotten the endpoint already
                self.socket.disconnect(self.address.endpoint)
            self.socket.connect(self.address.endpoint)
        return refusal

    def _send(self, parts: Sequence[bytes | memoryview]) -> bool:
        sent = send_frames(self.socket, parts)
        self.traffic.sent_bytes += sum(map(len, parts)) if sent else 0
        return sent

    def _follow_handshakes(self) -> str | None:
        """Handle the events of handshakes; the sentence of ``refusal``."""
        refusal = self._handshakes.refusal()
        reconnects = max(0, self._handshakes.succeeded - 1)
        self.traffic.reconnects += reconnects - self._reconnects
        self._reconnects = reconnects
        return refusal


def _bind(sock: zmq.Socket[bytes], address: Address) -> None:
    try:
        sock.bind(address.endpoint)
    except zmq.ZMQError as error:
        if address.host != "*" or error.errno == errno.EADDRINUSE:
            raise
        sock.setsockopt(zmq.IPV6, 0)  # a kernel without IPv6
        sock.bind(address.endpoint)
