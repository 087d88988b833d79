"""Where the coordinator takes invitation codes: a desk that is open while an invitation is.

It listens on the port after the coordinator's cluster port. ``exchange`` has the protocol and why a code of two words
is enough; ``redeem`` is the other side; ``crowd`` says who gives way when many strangers come.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from edgepp.cluster.identity import Cluster, PairedNode
from edgepp.cluster.pairing.admission_queue import AdmissionQueue, Caller
from edgepp.cluster.pairing.codes import GUESSES, make_code
from edgepp.cluster.pairing.protocol import (
    EXCHANGE_S,
    TRY_BYTES,
    Cause,
    Channel,
    OtherVersionError,
    Seal,
    Spake,
    expect,
    listen,
)
from edgepp.errors import EdgeppError, RemoteProtocolError, UsageError
from edgepp.events import NodePaired, OnEvent, PairingFailed
from edgepp.wire.security import LogSampler, bare_host
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Address

INVITE_S = 600.0
OPEN_AT_ONCE = 8
GREETING_S = 3.0
"""How long a connection may be silent at first."""
_NUMBERS = range(1, 100)
_LONGEST_S = 0.2  # between two looks at the clock
_STEP_S = 0.1  # answers leave at multiples of it, so that no timing tells how long the code took to compute with
_LOG = logging.getLogger(__name__)


@dataclass
class _Invitation:
    number: int
    code: str = field(repr=False)
    ends_s: float
    guesses: int = 0
    tries: set[bytes] = field(default_factory=set)
    """Tries that were judged wrong."""
    hosts: dict[str, None] = field(default_factory=dict)
    """Who guessed wrong."""


@dataclass(frozen=True)
class _Refusal:
    cause: Cause
    left: int = 0


class PairingServer:
    """Takes invitations on the coordinator. Its threads run only while one is open.

    ``address`` is that of the coordinator's cluster port; the desk listens on the next port. The three callables are
    called in the desk's threads: ``cluster`` for what a joiner is told, ``on_paired`` with the new member before it is
    told, so that it is admitted when it comes, and ``on_event`` with what happened.
    """

    def __init__(
        self,
        address: Address,
        cluster: Callable[[], Cluster],
        on_paired: Callable[[PairedNode], None],
        on_event: OnEvent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._cluster = cluster
        self._on_paired = on_paired
        self._on_event = on_event
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[int, _Invitation] = {}
        self._closed: dict[int, Cause] = {}
        self._events: deque[NodePaired | PairingFailed] = deque()
        self._rarely = LogSampler()
        self._listener: socket.socket | None = None
        self._connections = AdmissionQueue()
        self._computing = threading.Lock()
        """Held while an exchange is computed: strangers take one core at most."""
        self._threads: set[threading.Thread] = set()

    def invite(self) -> str:
        """A new code, good for ``INVITE_S`` seconds and one member.

        Raises:
            UsageError: too many are open, or the port is taken.
        """
        with self._lock:
            if len(self._open) >= OPEN_AT_ONCE:
                raise UsageError(f"{OPEN_AT_ONCE} invitations are open already", "wait until one is used or expires")
            if self._listener is None:
                self._listener = listen(Address(self._address.host, self._address.port + 1))
                self._start(self._serve, self._listener)
            fresh = [number for number in _NUMBERS if number not in self._open and number not in self._closed]
            number = secrets.choice(fresh or [number for number in _NUMBERS if number not in self._open])
            self._closed.pop(number, None)
            code = make_code(number)
            self._open[number] = _Invitation(number, code, self._clock() + INVITE_S)
            return code

    def numbers(self) -> tuple[int, ...]:
        """The numbers of the open invitations."""
        with self._lock:
            return tuple(sorted(self._open))

    def close(self) -> None:
        """Void what is open, and end the threads."""
        with self._lock:
            self._open.clear()
            callers, threads = list(self._connections), list(self._threads)
        for caller in callers:
            caller.hang_up()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="pairing", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            raise

    def _serve(self, listener: socket.socket) -> None:
        listener.settimeout(_LONGEST_S)
        while self._is_needed(listener):
            self._seat()
            try:
                connection, peer = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # out of descriptors, or the stranger has gone again
                _LOG.debug("the pairing desk cannot accept: %s", error)
                time.sleep(_LONGEST_S)
                continue
            caller = Caller(connection, bare_host(str(peer[0])))
            with self._lock:
                waits = bool(self._open) and self._connections.enqueue(caller)
            if not waits:
                connection.close()

    def _seat(self) -> None:
        """Attend to the callers in the queue for whom there is a place."""
        with self._lock:
            while self._open and (caller := self._connections.seat_next()) is not None:
                try:
                    self._start(self._attend, caller)
                except RuntimeError as error:  # the system has no thread left
                    _LOG.debug("the pairing desk cannot attend to %s: %s", caller.host, error)
                    self._connections.discard(caller)
                    caller.connection.close()

    def _is_needed(self, listener: socket.socket) -> bool:
        with self._lock:
            for invitation in list(self._open.values()):
                if self._clock() >= invitation.ends_s:
                    self._end(invitation, "expired", "expired unused")
            needed = bool(self._open)
            if not needed:
                for caller in self._connections.dismiss_queue():
                    caller.connection.close()
                listener.close()
                self._listener = None
                self._threads.discard(threading.current_thread())
        self._tell()
        return needed

    def _attend(self, caller: Caller) -> None:
        try:
            self._exchange(Channel(caller.connection, GREETING_S), caller)
        except (RemoteProtocolError, OSError) as error:
            _LOG.debug("pairing with %s came to nothing: %s", caller.host, error)
        finally:
            with self._lock:
                self._connections.discard(caller)
                self._threads.discard(threading.current_thread())
            caller.connection.close()
            self._tell()

    def _exchange(self, channel: Channel, caller: Caller) -> None:
        try:
            asked = channel.receive()
        except OtherVersionError:
            channel.send("refuse", "unknown", 0)  # it sees our version by that
            raise
        if asked is None:
            return
        number, element, attempt = expect(asked, "join", int, bytes, bytes, last=b"")
        caller.is_served()
        channel.allow(EXCHANGE_S)
        begun = self._begin(number, attempt[:TRY_BYTES], caller.host)
        if isinstance(begun, _Refusal):
            channel.send("refuse", begun.cause, begun.left)
            return
        seal = self._agree(channel, caller, begun, element)
        if seal is None or (proof := channel.receive()) is None:
            return
        (box,) = expect(proof, "prove", bytes)
        judged = self._judge(number, attempt[:TRY_BYTES], seal, box, caller.host)
        if isinstance(judged, PairedNode):
            judged = self._pair(judged, number, caller.host)
        if isinstance(judged, _Refusal):
            channel.send("refuse", judged.cause, judged.left)
            return
        cluster = self._cluster()
        reply = (cluster.id, cluster.coordinator.name, cluster.coordinator.key, self._address.port)
        channel.send("admit", seal.close("desk", reply))

    def _agree(self, channel: Channel, caller: Caller, code: str, element: bytes) -> Seal | None:
        """Send the desk's element; None where the caller has had to give way."""
        with self._computing:
            if caller not in self._connections:
                return None
            began_s = time.monotonic()
            spake = Spake("desk", code)
            ready = channel.prepare("desk", spake.element, self._cluster().id)
            seal = spake.seal(element, channel.transcript.digest())
        time.sleep((began_s - time.monotonic()) % _STEP_S)
        caller.is_awaited()
        channel.flush(ready)
        return seal

    def _pair(self, member: PairedNode, number: int, host: str) -> PairedNode | _Refusal:
        try:
            self._on_paired(member)
        except EdgeppError as error:
            self._trouble(f"{member.name} at {host} proved invitation {number} and cannot be let in: {error}")
            return _Refusal("failed")
        self._events.append(NodePaired(member.name, host, f"invitation {number}"))
        return member

    def _begin(self, number: int, attempt: bytes, host: str) -> str | _Refusal:
        """The code of an open invitation, unless this try was judged already."""
        with self._lock:
            invitation = self._open.get(number)
            if invitation is not None and self._clock() >= invitation.ends_s:
                self._end(invitation, "expired", "expired unused")
                invitation = None
            if invitation is None:
                if self._rarely.tells(host, "asked"):
                    self._trouble(
                        f"{host} asked for invitation {number % 1000}, which is not open (expired, used or never made)"
                    )
                return _Refusal(self._closed.get(number, "unknown"))
            return _judged(invitation, attempt) or invitation.code

    def _judge(self, number: int, attempt: bytes, seal: Seal, box: bytes, host: str) -> PairedNode | _Refusal:
        """Open the joiner's box; one at a time, so that guesses made at once are counted too."""
        with self._lock:
            invitation = self._open.get(number)
            if invitation is None:
                return _Refusal(self._closed.get(number, "unknown"))
            if (judged := _judged(invitation, attempt)) is not None:
                return judged
            opened = seal.open("joiner", box)
            if opened is None:
                return self._count(invitation, attempt, host)
            name, key = expect(("", *opened), "", str, str)
            if not is_key(key):
                raise RemoteProtocolError("the joiner's key is malformed")
            self._end(invitation, "used")
            return PairedNode.of(name, key)

    def _count(self, invitation: _Invitation, attempt: bytes, host: str) -> _Refusal:
        """One more wrong guess, and who made it."""
        invitation.guesses += 1
        invitation.hosts[host] = None
        if attempt:
            invitation.tries.add(attempt)
        tally = f"{invitation.guesses} of {GUESSES}"
        self._trouble(f"{host} guessed wrong ({tally}) for invitation {invitation.number}")
        if invitation.guesses >= GUESSES:
            hosts = ", ".join(invitation.hosts)
            self._end(invitation, "void", f"is void after {GUESSES} wrong guesses, made at {hosts}")
        return _Refusal("wrong", GUESSES - invitation.guesses)

    def _end(self, invitation: _Invitation, cause: Cause, line: str = "") -> None:
        del self._open[invitation.number]
        self._closed[invitation.number] = cause
        if line:
            self._trouble(f"invitation {invitation.number} {line}")

    def _trouble(self, text: str) -> None:
        self._events.append(PairingFailed(text))

    def _tell(self) -> None:
        """Hand on the events, outside the lock."""
        with suppress(IndexError):  # another thread has told the rest
            while self._events:
                self._on_event(self._events.popleft())


def _judged(invitation: _Invitation, attempt: bytes) -> _Refusal | None:
    """What was said to the same try already: it is one guess, by however many ways it comes."""
    return _Refusal("wrong", GUESSES - invitation.guesses) if attempt in invitation.tries else None
