"""Who may speak on an encrypted socket: CURVE key pairs, and the gate that checks them (ZAP 1.0, ZeroMQ's RFC 27).

Keys are text in Z85, 40 characters. A context that has an encrypted ``Listener`` has one ``Gate``; it also watches the
connections of all listeners: those whose handshake fails, since ZeroMQ itself says nothing of it, and those that take
too much (``guard``).
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import socket
import struct
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
from edgepp.wire.connection_limits import CHECK_S, ConnectionLimiter, raise_descriptor_limit
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.text_fields import is_key

PLAIN = "it does not encrypt"
OTHER_SERVER_KEY = "it expects another key of this node"
BROKEN_OFF = "it broke off the handshake"
MALFORMED = "its handshake is malformed"
"""Why a stranger is refused, where it did not come as far as showing its key."""

_LOG = logging.getLogger(__name__)
_ZAP = "inproc://zeromq.zap.01"
_WAKE = "inproc://edgepp.gate"
_WATCHED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_MONITOR_STOPPED
)
_MOST_ADDRESSES = 1024
_MOST_EVENTS = 200
"""Events of one listener that are read before others, and handshakes, have their turn."""
_UNKNOWN = "an unknown address"
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        """A new one."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def of_secret(cls, secret: str) -> KeyPair:
        """The pair of a secret key; ``secret`` satisfies ``is_key``."""
        return cls(zmq.curve_public(secret.encode()).decode(), secret)


@dataclass(frozen=True)
class Pinned:
    """How a ``Link`` proves itself, and whose key it expects."""

    own: KeyPair
    server: str


def pinned(own: KeyPair | None, server: str) -> Pinned | None:
    """How a link to the owner of the key ``server`` is protected; None for one without a key.

    Raises:
        PairingError: this machine has no keys of its own to prove.
    """
    if not server:
        return None
    if own is None:
        raise PairingError("this machine has not been paired with that node", "run `edgepp join CODE` first")
    return Pinned(own, server)


def bare_host(address: str) -> str:
    """An IP address without the IPv6 clothes of an IPv4 one, ``::ffff:``."""
    return address.removeprefix("::ffff:")


def monitor(sock: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """A socket on which ``sock``'s ``events`` arrive, for ``next_event``.

    Its queue has no bound: libzmq waits for room in it, and would stop every connection of the context meanwhile. Close
    it after ``sock``, or after ``sock.disable_monitor()``, for the same reason.
    """
    name = f"inproc://edgepp.monitor.{next(_NUMBERS)}"
    sock.monitor(name, events)
    pair: zmq.Socket[bytes] = sock.context.socket(zmq.PAIR)
    pair.setsockopt(zmq.RCVHWM, 0)
    pair.setsockopt(zmq.LINGER, 0)
    pair.connect(name)
    return pair


def next_event(pair: zmq.Socket[bytes]) -> tuple[int, int] | None:
    """The next event as (event, value), or None when none waits."""
    try:
        frames = pair.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
    event, value = struct.unpack("=HI", frames[0])
    return event, value


class Gate:
    """Admits the keys on a list, refuses everyone else. One a context; made before its encrypted listeners.

    ``on_refused`` hears of a stranger: its IP address, and its key, or one of the phrases above. It is called in the
    gate's thread, the 1st, 10th, 100th … time for an address, so that a flood of strangers cannot fill a disk. Without
    it, a warning is logged.
    """

    _of: ClassVar[WeakValueDictionary[int, Gate]] = WeakValueDictionary()

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], on_refused: Callable[[str, str], None] | None = None
    ) -> None:
        self._context = context
        self._on_refused = on_refused or _warn
        self._admitted: frozenset[str] = frozenset()
        self._rarely = LogSampler()
        self._members_at: dict[str, None] = {_UNKNOWN: None}
        """Hosts of admitted keys: a member tries several addresses at once, and breaks off all but one."""
        self._commands: queue.SimpleQueue[zmq.Socket[bytes] | None] = queue.SimpleQueue()
        self._closing = False
        self._raised_s = 0.0
        self._guards: dict[zmq.Socket[bytes], tuple[ConnectionLimiter, bool]] = {}
        """Of each listener's monitor: its connections, and whether those that fail are reported."""
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
        """The gate of a context; None where it has none."""
        return cls._of.get(context.underlying)

    def admit(self, keys: Iterable[str]) -> None:
        """Admit these keys and no others, from the next handshake on; connections that exist stay. Any thread."""
        self._admitted = frozenset(keys)

    def admits(self, key: str) -> bool:
        """Whether ``key`` is on the list."""
        return key in self._admitted

    def watch(self, sock: zmq.Socket[bytes], guard: ConnectionLimiter, *, encrypted: bool) -> None:
        """Keep ``guard`` informed of the connections of ``sock``, which is not bound yet; its thread calls this.

        Of one that is ``encrypted``, handshakes that fail are reported.
        """
        pair = monitor(sock, _WATCHED)
        self._guards[pair] = guard, encrypted
        self._order(pair)

    def close(self) -> None:
        """End the thread, as soon as the last encrypted listener is closed. Before ``context.term()``."""
        self._of.pop(self._context.underlying, None)
        self._order(None)

    def _order(self, command: zmq.Socket[bytes] | None) -> None:
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
                busy = any(len(self._guards[pair][0]) for pair in watched)
                for sock, _ in poller.poll(int(CHECK_S * 1000) if busy else None):
                    if sock is self._wake:
                        self._wake.recv()
                        if (pair := self._commands.get()) is None:
                            self._closing = True
                        else:
                            watched.add(pair)
                            poller.register(pair, zmq.POLLIN)
                    elif not self._see_to(sock):
                        poller.unregister(sock)
                        watched.remove(sock)
                        del self._guards[sock]
                        sock.close()
                self._check(watched)
        except zmq.ContextTerminated:
            _LOG.debug("the context ended before its gate was closed")
        finally:
            for sock in (self._zap, self._wake, *self._guards):  # also one whose command nobody took yet
                sock.close()

    def _see_to(self, sock: zmq.Socket[bytes]) -> bool:
        """Read what ``sock`` has; False once its listener is closed. An unexpected error costs what was read."""
        try:
            if sock is not self._zap:
                return self._observe(sock)
            self._decide(self._zap.recv_multipart())
        except zmq.ContextTerminated:
            raise
        except Exception as error:  # noqa: BLE001 - such as a stranger of whom nothing can be printed
            if self._rarely.should_log("gate", type(error).__name__):
                _LOG.exception("the gate failed at one connection")
        return True

    def _check(self, watched: Iterable[zmq.Socket[bytes]]) -> None:
        now_s = time.monotonic()
        for pair in watched:
            self._guards[pair][0].check(now_s)
        if now_s - self._raised_s > 1.0:
            self._raised_s = now_s
            raise_descriptor_limit()

    def _decide(self, frames: list[bytes]) -> None:
        """Answer one ZAP request; it comes from libzmq, its address, mechanism and credentials from the stranger."""
        delimiter = frames.index(b"")
        version, request, _domain, address, _identity, mechanism, *credentials = frames[delimiter + 1 :]
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
        admitted = bool(key) and self.admits(key)
        verdict = (b"200", b"", key.encode()) if admitted else (b"400", b"not admitted", b"")
        self._zap.send_multipart([*frames[: delimiter + 1], version, request, *verdict, b""])
        host = bare_host(address.decode(errors="replace"))
        if not admitted:
            self._report(host, key or PLAIN)
        elif len(self._members_at) < _MOST_ADDRESSES:
            self._members_at[host] = None

    def _observe(self, pair: zmq.Socket[bytes]) -> bool:
        """Read what happened on a listener; False once it is closed."""
        guard, encrypted = self._guards[pair]
        for _ in range(_MOST_EVENTS):
            if (happened := next_event(pair)) is None:
                break
            event, value = happened
            if event == zmq.EVENT_ACCEPTED:
                host = self._hosts[pair, value] = _peer(value)
                guard.accepted(value, host)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._failed[pair] = _REASONS.get(value, MALFORMED)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._failed[pair] = BROKEN_OFF
            elif event == zmq.EVENT_DISCONNECTED:
                # It follows the failure at once: the context has one thread for input and output.
                guard.closed(value)
                host, why = self._hosts.pop((pair, value), _UNKNOWN), self._failed.pop(pair, None)
                if why is not None and encrypted:
                    self._report(host, why)
            elif event == zmq.EVENT_MONITOR_STOPPED:
                return False
        return True

    def _report(self, host: str, why: str) -> None:
        if why == BROKEN_OFF and host in self._members_at:
            return
        if self._rarely.should_log(host, "key" if is_key(why) else why):
            self._on_refused(host, why)


_REASONS: Mapping[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: PLAIN,
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: OTHER_SERVER_KEY,
}


def _peer(descriptor: int) -> str:
    """Who is connected to one of libzmq's own descriptors, if it is still open."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return bare_host(str(duplicate.getpeername()[0]))
    return _UNKNOWN


def _warn(host: str, why: str) -> None:
    _LOG.warning("refused %s: %s", host, f"its key {why} is not one of this cluster" if is_key(why) else why)
