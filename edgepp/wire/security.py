"""CURVE key pairs, and the gate that admits keys to encrypted sockets (ZAP 1.0, ZeroMQ's RFC 27).

Keys are 40 characters of text, in Z85. A context with an encrypted ``Listener`` has one ``Gate``. The gate also watches
the connections of all listeners: it reports failed handshakes, of which ZeroMQ itself tells nobody, and applies the
limits of ``connection_limits``.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakValueDictionary

import zmq
from zmq.utils import z85

from edgepp.errors import PairingError
from edgepp.wire.connection_limits import CHECK_INTERVAL_S, ConnectionLimiter, raise_descriptor_limit
from edgepp.wire.handshake_monitor import monitor, next_event
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.text_fields import is_key

PLAIN = "it does not encrypt"
OTHER_SERVER_KEY = "it expects another key of this node"
BROKEN_OFF = "it broke off the handshake"
MALFORMED = "its handshake is malformed"
"""One of the reasons above stands for a refused connection that has shown no key."""

log = logging.getLogger("edgepp.wire")
_ZAP = "inproc://zeromq.zap.01"
_WAKE = "inproc://edgepp.gate"
_WATCHED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_MONITOR_STOPPED
)
_MAX_MEMBER_HOSTS = 1024
_MAX_EVENTS_PER_TURN = 200
"""Events of one listener that are read before other listeners and handshakes get their turn."""
_UNKNOWN = "an unknown address"


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        """A new random key pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def of_secret(cls, secret: str) -> KeyPair:
        """Key pair of a secret key that satisfies ``is_key``."""
        return cls(zmq.curve_public(secret.encode()).decode(), secret)


@dataclass(frozen=True)
class Pinned:
    """Keys of an encrypted ``Link``: its own pair, and the public key that the listener must prove."""

    own: KeyPair
    server: str


def pinned(own: KeyPair | None, server: str) -> Pinned | None:
    """Keys of a link to the owner of the public key ``server``; None, for a plain link, where ``server`` is empty.

    Raises:
        PairingError: This machine has no key pair.
    """
    if not server:
        return None
    if own is None:
        raise PairingError("this machine has not been paired with that node", "run `edgepp join CODE` first")
    return Pinned(own, server)


def bare_host(address: str) -> str:
    """IP address without the prefix ``::ffff:`` of an IPv4-mapped IPv6 address."""
    return address.removeprefix("::ffff:")


class Gate:
    """Admits the keys on a list and refuses all others. One per context, made before the encrypted listeners.

    ``on_refused(host, why)`` is called in the gate's thread for refused connections, as ``LogSampler`` chooses them:
    ``host`` is the IP address, ``why`` the key or one of the reasons of this module. The default logs a warning.
    """

    _of: ClassVar[WeakValueDictionary[int, Gate]] = WeakValueDictionary()

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], on_refused: Callable[[str, str], None] | None = None
    ) -> None:
        self._context = context
        self._on_refused = on_refused or _warn
        self._admitted: frozenset[str] = frozenset()
        self._log_sampler = LogSampler()
        self._member_hosts: dict[str, None] = {_UNKNOWN: None}
        """Hosts of admitted keys. They break off handshakes when they try several addresses: that is not reported."""
        self._commands: queue.SimpleQueue[zmq.Socket[bytes] | None] = queue.SimpleQueue()
        self._closing = False
        self._raised_s = 0.0
        self._limiters: dict[zmq.Socket[bytes], tuple[ConnectionLimiter, bool]] = {}
        """Per monitor of a listener: its limiter, and whether failed handshakes are reported."""
        self._hosts: dict[tuple[zmq.Socket[bytes], int], str] = {}
        self._failed: dict[zmq.Socket[bytes], str] = {}
        self._zap: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(_ZAP)
        self._wake: zmq.Socket[bytes] = context.socket(zmq.PULL)
        self._wake.bind(_WAKE)
        self._of[context.underlying] = self
        threading.Thread(target=self._run, name="gate", daemon=True).start()

    @classmethod
    def of(cls, context: zmq.Context[zmq.Socket[bytes]]) -> Gate | None:
        """Gate of a context; None for a context without."""
        return cls._of.get(context.underlying)

    def admit(self, keys: Iterable[str]) -> None:
        """Admit exactly these keys from the next handshake on; existing connections stay. Safe from any thread."""
        self._admitted = frozenset(keys)

    def admits(self, key: str) -> bool:
        """Whether ``key`` is admitted."""
        return key in self._admitted

    def watch(self, sock: zmq.Socket[bytes], limiter: ConnectionLimiter, *, encrypted: bool) -> None:
        """Apply ``limiter`` to connections of ``sock``, and report failed handshakes where ``encrypted``.

        Call it in the thread of ``sock``, before ``sock`` is bound.
        """
        pair = monitor(sock, _WATCHED)
        self._limiters[pair] = limiter, encrypted
        self._send_command(pair)

    def close(self) -> None:
        """End the thread as soon as the last listener is closed. Call it before ``context.term()``."""
        self._of.pop(self._context.underlying, None)
        self._send_command(None)

    def _send_command(self, command: zmq.Socket[bytes] | None) -> None:
        self._commands.put(command)
        with self._context.socket(zmq.PUSH) as wake:
            wake.connect(_WAKE)
            wake.send(b"")

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        watched: set[zmq.Socket[bytes]] = set()
        try:
            while not self._closing or watched:
                busy = any(len(self._limiters[pair][0]) for pair in watched)
                for sock, _ in poller.poll(int(CHECK_INTERVAL_S * 1000) if busy else None):
                    if sock is self._wake:
                        self._wake.recv()
                        if (pair := self._commands.get()) is None:
                            self._closing = True
                        else:
                            watched.add(pair)
                            poller.register(pair, zmq.POLLIN)
                    elif not self._handle(sock):
                        poller.unregister(sock)
                        watched.remove(sock)
                        del self._limiters[sock]
                        sock.close()
                self._check(watched)
        except zmq.ContextTerminated:
            log.debug("the context ended before its gate was closed")
        finally:
            for sock in (
                self._zap,
                self._wake,
                *self._limiters,
            ):  # also monitors that the thread has not taken over yet
                sock.close()

    def _handle(self, sock: zmq.Socket[bytes]) -> bool:
        """Handle what waits on ``sock``; False for the monitor of a closed listener. An unexpected error is logged."""
        try:
            if sock is not self._zap:
                return self._observe(sock)
            self._decide(self._zap.recv_multipart())
        except zmq.ContextTerminated:
            raise
        except Exception as error:
            if self._log_sampler.should_log("gate", type(error).__name__):
                log.exception("the gate failed to handle a connection")
        return True

    def _check(self, watched: Iterable[zmq.Socket[bytes]]) -> None:
        now_s = time.monotonic()
        for pair in watched:
            self._limiters[pair][0].check(now_s)
        if now_s - self._raised_s > 1.0:
            self._raised_s = now_s
            raise_descriptor_limit()

    def _decide(self, frames: list[bytes]) -> None:
        """Answer one ZAP request of libzmq; address, mechanism and credentials in the request are the peer's."""
        delimiter = frames.index(b"")
        version, request, _domain, address, _identity, mechanism, *credentials = frames[delimiter + 1 :]
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
        admitted = bool(key) and self.admits(key)
        verdict = (b"200", b"", key.encode()) if admitted else (b"400", b"not admitted", b"")
        self._zap.send_multipart([*frames[: delimiter + 1], version, request, *verdict, b""])
        host = bare_host(address.decode(errors="replace"))
        if not admitted:
            self._report(host, key or PLAIN)
        elif len(self._member_hosts) < _MAX_MEMBER_HOSTS:
            self._member_hosts[host] = None

    def _observe(self, pair: zmq.Socket[bytes]) -> bool:
        """Read the events of a listener; False once the listener is closed."""
        limiter, encrypted = self._limiters[pair]
        for _ in range(_MAX_EVENTS_PER_TURN):
            if (received := next_event(pair)) is None:
                break
            event, value = received
            if event == zmq.EVENT_ACCEPTED:
                host = self._hosts[pair, value] = _peer(value)
                limiter.add(value, host)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._failed[pair] = _REASONS.get(value, MALFORMED)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._failed[pair] = BROKEN_OFF
            elif event == zmq.EVENT_DISCONNECTED:
                # This event follows the failure directly, since the context has one I/O thread.
                limiter.remove(value)
                host, why = self._hosts.pop((pair, value), _UNKNOWN), self._failed.pop(pair, None)
                if why is not None and encrypted:
                    self._report(host, why)
            elif event == zmq.EVENT_MONITOR_STOPPED:
                return False
        return True

    def _report(self, host: str, why: str) -> None:
        if why == BROKEN_OFF and host in self._member_hosts:
            return
        if self._log_sampler.should_log(host, "key" if is_key(why) else why):
            self._on_refused(host, why)


_REASONS: Mapping[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: PLAIN,
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: OTHER_SERVER_KEY,
}


def _peer(descriptor: int) -> str:
    """IP address of the peer of a descriptor; ``_UNKNOWN`` for a closed one."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return bare_host(str(duplicate.getpeername()[0]))
    return _UNKNOWN


def _warn(host: str, why: str) -> None:
    log.warning("refused %s: %s", host, f"its key {why} is not one of this cluster" if is_key(why) else why)
