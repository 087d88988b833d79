"""Sockets with a policy: the only place that makes one.

A ``Listener`` binds and answers many peers, a ``Link`` connects to one. Both are non-blocking with bounded queues, keep
no message after they are closed, and notice a dead connection within two seconds. With keys they encrypt, by CURVE,
and a ``Gate`` (``security``) admits the other side. A socket belongs to one thread.
"""

from __future__ import annotations

import errno
import ipaddress
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import zmq

from edgepp.errors import LocalProtocolError, RemoteProtocolError, UsageError
from edgepp.wire.connection_limits import CHECK_S, ConnectionLimiter
from edgepp.wire.handshake_monitor import HandshakeMonitor
from edgepp.wire.messages import MAX_FRAMES
from edgepp.wire.security import Gate, KeyPair, Pinned, bare_host
from edgepp.wire.text_fields import host_and_port

HEARTBEAT_S = 0.5
CONNECT_S = 3.0
ZAP_DOMAIN = b"edgepp"
_QUEUE_FRAMES = 1000
_ZERO_COPY_RECEIVE = 10
"""An option of contexts, ZMQ_ZERO_COPY_RECV, that pyzmq has no name for."""
_CURVE_BYTES = 64
"""More than what encryption adds to a frame."""
_NO_COPY_BYTES = 1 << 20  # below a megabyte a copy is as fast as sharing the buffer


@dataclass(frozen=True)
class Address:
    """A TCP host and port; port 0 lets the system choose. To listen on every interface, host is ``*``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``*:PORT``.

        Raises:
            UsageError: the text is neither.
        """
        parsed = host_and_port(text.strip())
        if parsed is None:
            raise UsageError(f"'{text}' is not an address", "write HOST:PORT, like 192.168.1.20:5720")
        host, port = parsed
        return cls("127.0.0.1" if host == "localhost" else host, port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host.split("%")[0]).is_loopback
        except ValueError:
            return False

    @property
    def endpoint(self) -> str:
        """ZeroMQ's way to write it."""
        return f"tcp://{self}"


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """A socket whose small messages do not each hold the whole buffer, of 18 kB, that they arrived in."""
    with suppress(zmq.ZMQError):  # a libzmq that knows no such option
        context.set(_ZERO_COPY_RECEIVE, 0)
    return context.socket(kind)


def _configure(sock: zmq.Socket[bytes], max_frame_bytes: int) -> None:
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, _QUEUE_FRAMES)
    # No bound on messages: where a full queue stops input, libzmq aborts the process at the next heartbeat or PING of a
    # connection that has ended (its issues 3937 and 4364). The guard bounds their bytes instead.
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.setsockopt(zmq.IPV6, 1)
    sock.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes + _CURVE_BYTES)
    sock.setsockopt(zmq.HANDSHAKE_IVL, int(CONNECT_S * 1000))
    sock.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_S * 1000))
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(3 * HEARTBEAT_S * 1000))


def _serve_curve(sock: zmq.Socket[bytes], keys: KeyPair) -> None:
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    sock.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an answer from the gate, no


def _bind(sock: zmq.Socket[bytes], address: Address) -> None:
    try:
        sock.bind(address.endpoint)
    except zmq.ZMQError as error:
        if address.host != "*" or error.errno == errno.EADDRINUSE:
            raise
        sock.setsockopt(zmq.IPV6, 0)  # a kernel without it
        sock.bind(address.endpoint)


def _receive(
    sock: zmq.Socket[bytes], frames: int, guard: ConnectionLimiter, *, proven: bool = False
) -> list[zmq.Frame] | None:
    """One waiting message of at most ``frames`` frames; None when there is none.

    ``proven``: a gate has checked the sender's key. Elsewhere a stranger could set User-Id itself.

    Raises:
        RemoteProtocolError: it has more frames; all of them are discarded.
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
        if count <= frames:
            parts.append(frame)
    with suppress(zmq.ZMQError):  # one without metadata
        guard.taken(int(frame.get(zmq.SRCFD)), count, nbytes, str(frame.get("User-Id")) if proven else "")
    if count > frames:
        raise RemoteProtocolError(f"a message of {count} frames where {frames} are allowed")
    return parts


def _send(sock: zmq.Socket[bytes], parts: Sequence[bytes | memoryview]) -> bool:
    try:
        for i, part in enumerate(parts):
            more = zmq.SNDMORE if i < len(parts) - 1 else 0
            sock.send(part, zmq.NOBLOCK | more, copy=len(part) < _NO_COPY_BYTES)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


class Sender(NamedTuple):
    """Whom a message came from."""

    route: bytes
    key: str
    """The public key that it proved; empty on a plain socket."""
    host: str
    """Its IP address."""


class Listener:
    """A bound ROUTER: receives from anyone who connected, answers by the peer's route."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        max_frame_bytes: int,
        keys: KeyPair | None = None,
        answers: int | None = None,
    ) -> None:
        """Bind ``address``; host ``*`` is every interface, IPv6 and IPv4. With ``keys`` only whom the gate admits.

        ``answers`` messages at most wait for one peer that does not take them.

        Raises:
            UsageError: it is taken, or not an address of this machine.
            LocalProtocolError: there are keys but no gate in the context.
        """
        gate = Gate.of(context)
        if keys is not None and gate is None:
            raise LocalProtocolError("an encrypted listener needs a gate in its context")
        self.socket = _socket(context, zmq.ROUTER)
        _configure(self.socket, max_frame_bytes)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._gate = gate if keys is not None else None
        """Who checks keys; None where nothing is encrypted."""
        if answers is not None:
            self.socket.setsockopt(zmq.SNDHWM, answers)
        self._guard = ConnectionLimiter(2 * max_frame_bytes)
        if keys is not None:
            _serve_curve(self.socket, keys)
        if gate is not None:
            gate.watch(self.socket, self._guard, encrypted=keys is not None)
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
        self._guard.port = self.address.port

    def receive(self) -> tuple[Sender, list[memoryview]] | None:
        """The next waiting message of an admitted peer as (its sender, frames), or None.

        Raises:
            RemoteProtocolError: it has too many frames or none, or its key is no longer admitted; it is gone.
        """
        received = self.receive_from()
        if received is not None and self._gate is not None and not self._gate.admits(received[0].key):
            raise RemoteProtocolError(f"a message of {received[0].host}, whose key was revoked")  # it was connected
        return received

    def receive_from(self) -> tuple[Sender, list[memoryview]] | None:
        """The next waiting message as (its sender, frames), or None; also of a peer that was revoked meanwhile.

        Raises:
            RemoteProtocolError: it has too many frames or none; it is gone.
        """
        parts = _receive(self.socket, MAX_FRAMES + 1, self._guard, proven=self._gate is not None)
        if parts is None:
            return None
        if len(parts) < 2:
            raise RemoteProtocolError("a message without a header")
        route = parts[0]
        key = str(route.get("User-Id")) if self._gate is not None else ""
        sender = Sender(route.bytes, key, bare_host(str(route.get("Peer-Address"))))
        return sender, [part.buffer for part in parts[1:]]

    def send(self, route: bytes, parts: Sequence[bytes | memoryview]) -> bool:
        """Send to one peer; False when it is gone or its queue is full."""
        return _send(self.socket, [route, *parts])

    def close(self, linger_s: float = 0.0) -> None:
        """Stop listening, after ``linger_s`` seconds in which peers can receive what was sent to them last.

        What a peer's ``Link`` has not received by then may be lost, although it was sent.
        """
        time.sleep(linger_s)
        self.socket.close(0)


class Link:
    """A DEALER connected to one listener; reconnects by itself, also after a refusal while it is used.

    When a connection ends, libzmq drops what came by it and was not received yet (a consequence of ZMQ_IMMEDIATE). So
    whoever ends a connection behind a message that matters has to wait for the other side to close or answer first.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        max_frame_bytes: int,
        route: bytes | None = None,
        pinned: Pinned | None = None,
    ) -> None:
        """Begin to connect, encrypted where ``pinned`` says with which keys.

        ``route`` is the name under which the listener can send back unasked.

        Raises:
            UsageError: nobody can connect to such an address.
        """
        self.address = address
        self._guard = ConnectionLimiter(2 * max_frame_bytes, dialled=True)
        self._guard.port = address.port
        self._looked_s = 0.0
        self.socket = _socket(context, zmq.DEALER)
        _configure(self.socket, max_frame_bytes)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.CONNECT_TIMEOUT, int(CONNECT_S * 1000))
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if route is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, route)
        if pinned is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, pinned.server.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, pinned.own.public.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, pinned.own.secret.encode())
        self._handshakes = HandshakeMonitor(
            self.socket, str(address), CONNECT_S, self._guard, encrypts=pinned is not None
        )
        try:
            self.socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(f"cannot connect to {address}: {error.strerror}") from error

    def send(self, parts: Sequence[bytes | memoryview], wait_s: float = 0.0) -> bool:
        """Send; False when the other side is not connected, or its queue is full, for ``wait_s``."""
        self.look()
        if _send(self.socket, parts):
            return True
        self.refusal()
        return wait_s > 0 and bool(self.socket.poll(int(wait_s * 1000), zmq.POLLOUT)) and _send(self.socket, parts)

    def receive(self, wait_s: float = 0.0) -> list[memoryview] | None:
        """The next message's frames, or None when none comes for ``wait_s``.

        Raises:
            RemoteProtocolError: it has too many frames; it is gone.
        """
        self.look()
        if wait_s > 0 and not self.socket.poll(int(wait_s * 1000), zmq.POLLIN):
            return None
        parts = _receive(self.socket, MAX_FRAMES, self._guard)
        return None if parts is None else [part.buffer for part in parts]

    def look(self) -> None:
        """Cut the connection where the other side sent more than it may; sending and receiving do it by the way."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= CHECK_S:
            self._looked_s = now_s
            self._handshakes.refusal()
            self._guard.check(now_s)

    def close(self, linger_s: float = 0.0) -> None:
        """Disconnect; messages not yet sent get ``linger_s`` seconds, then they are dropped."""
        self._handshakes.close()
        self.socket.close(int(linger_s * 1000))

    def refusal(self) -> str | None:
        """One sentence once the handshake has failed, until one succeeds; None while nothing is known.

        Does not block. Ask now and then, or go on sending: libzmq gives up on a listener that refused, and this tries
        again after a second.
        """
        refusal = self._handshakes.refusal()
        if self._handshakes.asks_for_retry():
            with suppress(zmq.ZMQError):  # libzmq may have forgotten the endpoint itself
                self.socket.disconnect(self.address.endpoint)
            self.socket.connect(self.address.endpoint)
        return refusal
