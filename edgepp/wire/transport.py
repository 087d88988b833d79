"""Sockets with a policy: the only place that makes one.

A ``Listener`` binds and answers many peers, a ``Link`` connects to one. Both are non-blocking with bounded queues, keep
no message after they are closed, and notice a dead connection within two seconds. With keys they encrypt, by CURVE,
and a ``Gate`` (``security``) admits the other side. A socket belongs to one thread; a ``Mailbox`` carries objects from
one thread into another's poll loop.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import queue
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import zmq

from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.wire.messages import MAX_FRAMES, Echo, decode, encode
from edgepp.wire.security import Gate, KeyPair, Pinned, bare_host, monitor, next_event

HEARTBEAT_S = 0.5
CONNECT_S = 3.0
ZAP_DOMAIN = b"edgepp"
_QUEUE_FRAMES = 1000
_NO_COPY_BYTES = 1 << 20  # below a megabyte a copy is as fast as sharing the buffer

_RETRY_S = 1.0  # after a refusal
_HANDSHAKES = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

T = TypeVar("T")


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
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([A-Za-z0-9._-]+|\*)):(\d{1,5})", text.strip())
        if match is None or int(match[3]) > 65535:
            raise UsageError(f"'{text}' is not an address", "write HOST:PORT, like 192.168.1.20:5720")
        host = match[1] or match[2]
        return cls("127.0.0.1" if host == "localhost" else host, int(match[3]))

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


def _configure(sock: zmq.Socket[bytes], max_frame_bytes: int) -> None:
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, _QUEUE_FRAMES)
    sock.setsockopt(zmq.RCVHWM, _QUEUE_FRAMES)
    sock.setsockopt(zmq.IPV6, 1)
    sock.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
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


def _receive(sock: zmq.Socket[bytes], frames: int) -> list[zmq.Frame] | None:
    """One waiting message of at most ``frames`` frames; None when there is none.

    Raises:
        RemoteProtocolError: it has more frames; all of them are discarded.
    """
    parts: list[zmq.Frame] = []
    count = 0
    more = True
    while more:
        try:
            frame = sock.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        count += 1
        more = frame.more
        if count <= frames:
            parts.append(frame)
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
    ) -> None:
        """Bind ``address``; host ``*`` is every interface, IPv6 and IPv4. With ``keys`` only whom the gate admits.

        Raises:
            UsageError: it is taken, or not an address of this machine.
            LocalProtocolError: there are keys but no gate in the context.
        """
        gate = Gate.of(context) if keys is not None else None
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        _configure(self.socket, max_frame_bytes)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._secure = keys is not None
        if keys is not None and gate is not None:
            _serve_curve(self.socket, keys)
            gate.watch(self.socket)
        try:
            _bind(self.socket, address)
        except zmq.ZMQError as error:
            self.socket.close()
            raise UsageError(
                f"cannot listen on {address}: {error.strerror}", "choose another port, or 0 for any free one"
            ) from error
        endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.address = Address(address.host, int(endpoint.rpartition(":")[2]))

    def receive(self) -> tuple[bytes, list[memoryview]] | None:
        """The next waiting message as (route of its sender, frames), or None.

        Raises:
            RemoteProtocolError: it has too many frames or none; it is gone.
        """
        parts = self._parts()
        return None if parts is None else (parts[0].bytes, [part.buffer for part in parts[1:]])

    def receive_from(self) -> tuple[Sender, list[memoryview]] | None:
        """The next waiting message as (its sender, frames), or None.

        Raises:
            RemoteProtocolError: it has too many frames or none; it is gone.
        """
        parts = self._parts()
        if parts is None:
            return None
        route = parts[0]
        # Where no gate sets it, a stranger could set User-Id itself.
        key = str(route.get("User-Id")) if self._secure else ""
        sender = Sender(route.bytes, key, bare_host(str(route.get("Peer-Address"))))
        return sender, [part.buffer for part in parts[1:]]

    def _parts(self) -> list[zmq.Frame] | None:
        """Route and frames of the next waiting message."""
        parts = _receive(self.socket, MAX_FRAMES + 1)
        if parts is not None and len(parts) < 2:
            raise RemoteProtocolError("a message without a header")
        return parts

    def send(self, route: bytes, parts: Sequence[bytes | memoryview]) -> bool:
        """Send to one peer; False when it is gone or its queue is full."""
        return _send(self.socket, [route, *parts])

    def close(self) -> None:
        """Stop listening; waiting messages are dropped."""
        self.socket.close()


class Link:
    """A DEALER connected to one listener; reconnects by itself, also after a refusal while it is used."""

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
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        _configure(self.socket, max_frame_bytes)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.CONNECT_TIMEOUT, int(CONNECT_S * 1000))
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if route is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, route)
        self._encrypts = pinned is not None
        self._refusal: str | None = None
        self._connected_s = 0.0
        self._broken_off = 0
        self._retry_s = math.inf
        if pinned is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, pinned.server.encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, pinned.own.public.encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, pinned.own.secret.encode())
        self._monitor = monitor(self.socket, _HANDSHAKES)
        try:
            self.socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(f"cannot connect to {address}: {error.strerror}") from error

    def send(self, parts: Sequence[bytes | memoryview], wait_s: float = 0.0) -> bool:
        """Send; False when the other side is not connected, or its queue is full, for ``wait_s``."""
        if _send(self.socket, parts):
            return True
        self.refusal()
        return wait_s > 0 and bool(self.socket.poll(int(wait_s * 1000), zmq.POLLOUT)) and _send(self.socket, parts)

    def receive(self, wait_s: float = 0.0) -> list[memoryview] | None:
        """The next message's frames, or None when none comes for ``wait_s``.

        Raises:
            RemoteProtocolError: it has too many frames; it is gone.
        """
        if wait_s > 0 and not self.socket.poll(int(wait_s * 1000), zmq.POLLIN):
            return None
        parts = _receive(self.socket, MAX_FRAMES)
        return None if parts is None else [part.buffer for part in parts]

    def close(self, linger_s: float = 0.0) -> None:
        """Disconnect; messages not yet sent get ``linger_s`` seconds, then they are dropped."""
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close(int(linger_s * 1000))

    def refusal(self) -> str | None:
        """One sentence once the handshake has failed, until one succeeds; None while nothing is known.

        Does not block. Ask now and then, or go on sending: libzmq gives up on a listener that refused, and this tries
        again after a second.
        """
        while (happened := next_event(self._monitor)) is not None:
            self._learn(*happened)
        if time.monotonic() > self._retry_s:
            self._retry_s = math.inf
            with suppress(zmq.ZMQError):  # libzmq may have forgotten the endpoint itself
                self.socket.disconnect(self.address.endpoint)
            self.socket.connect(self.address.endpoint)
        return self._refusal

    def _learn(self, event: int, value: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            self._connected_s = time.monotonic()
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusal, self._broken_off, self._retry_s = None, 0, math.inf
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refusal = f"{self.address} does not admit this node's key: it was never invited there, or was revoked"
            self._retry_s = time.monotonic() + _RETRY_S
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            fault = _FAULTS.get(value, "speaks another protocol than edgepp")
            if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH and not self._encrypts:
                fault = "encrypts, and admits paired machines only"
            self._refusal = f"{self.address} {fault}"
            self._retry_s = time.monotonic() + _RETRY_S
        elif value in (errno.EPIPE, errno.ECONNRESET) and time.monotonic() < self._connected_s + CONNECT_S * 0.9:
            # Later it is our own patience that ended: that is a machine asleep. Once, it may be a restart.
            self._broken_off += 1
            if self._broken_off > 1 and self._refusal is None:
                self._refusal = (
                    f"{self.address} broke off the handshake: its key is another one than this node knows,"
                    " or it does not encrypt"
                )


_FAULTS: Mapping[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "does not encrypt: it runs with --insecure, or is no part of a cluster",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "has another key than this node knows",
}


class Mailbox(Generic[T]):
    """A queue into a thread that sleeps in a poll: ``put`` from anywhere, ``fileno`` to poll, ``drain`` to read."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def put(self, item: T) -> None:
        """Add an item and wake the reader. Safe from any thread."""
        self._items.put(item)
        try:
            self._write.send(b"\0")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def fileno(self) -> int:
        """The descriptor that becomes readable when there are items."""
        return self._read.fileno()

    def drain(self) -> list[T]:
        """Every item put so far, oldest first."""
        try:
            while self._read.recv(4096):
                continue
        except BlockingIOError:
            pass
        items: list[T] = []
        while not self._items.empty():
            items.append(self._items.get())
        return items

    def close(self) -> None:
        """Release the descriptors."""
        self._read.close()
        self._write.close()


class Poller(Generic[T]):
    """Waits for several sockets and mailboxes at once, in one thread."""

    def __init__(self, *readers: Listener | Link | Mailbox[T]) -> None:
        self._poller = zmq.Poller()
        self._readers: dict[object, Listener | Link | Mailbox[T]] = {}
        for reader in readers:
            self.add(reader)

    def add(self, reader: Listener | Link | Mailbox[T]) -> None:
        """Wait for ``reader`` too."""
        key = reader.fileno() if isinstance(reader, Mailbox) else reader.socket
        self._readers[key] = reader
        self._poller.register(key, zmq.POLLIN)

    def wait(self, timeout_s: float) -> list[Listener | Link | Mailbox[T]]:
        """Those that have something to read, after ``timeout_s`` seconds at most."""
        return [self._readers[key] for key, _ in self._poller.poll(max(0, math.ceil(timeout_s * 1000)))]


PROBE_BYTES = 1 << 18
"""What is sent to and fro to find out how fast a link is, where so long a frame may be sent."""


def link_rate(short_s: float, long_s: float, long_bytes: int) -> int:
    """Bytes a second one way, from how long an echo of a hidden state and one of ``long_bytes`` take."""
    return int(2 * long_bytes / max(long_s - short_s, 1e-6))


def measure_echo(link: Link, payload_bytes: int, wait_s: float, rounds: int = 5) -> float | None:
    """Seconds that ``payload_bytes`` take to the listener of ``link`` and back, the best of some rounds.

    None when nothing comes back for ``wait_s``: the listener cannot be reached, or does not answer.
    """
    payload = bytes(payload_bytes)
    best: float | None = None
    for nonce in range(rounds):
        start = time.perf_counter()
        if not link.send([encode(Echo(nonce, reply=False)), payload], wait_s):
            return None
        while (frames := link.receive(wait_s)) is not None and decode(frames[0]) != Echo(nonce, reply=True):
            continue  # an answer that is not ours, or came too late
        if frames is None:
            return None
        took = time.perf_counter() - start
        best = took if best is None else min(best, took)
    return best
