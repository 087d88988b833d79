"""Where the coordinator takes invitation codes: a desk that is open while an invitation is.

It listens on the port after the coordinator's cluster port. ``exchange`` has the protocol and why a code of two words
is enough; ``redeem`` is the other side.
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

from edgepp.cluster.codes import GUESSES, make_code
from edgepp.cluster.exchange import Cause, Channel, OtherVersionError, Seal, Spake, expect, listen
from edgepp.cluster.identity import Cluster, Member
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.wire.security import Rarely, bare_host
from edgepp.wire.transport import Address
from edgepp.wire.values import is_key

INVITE_S = 600.0
OPEN_AT_ONCE = 8
_NUMBERS = range(1, 100)
_CONNECTIONS = 4
_LONGEST_S = 0.2  # between two looks at the clock
_EXCHANGES = 32  # of one invitation: each tells whoever times it a little
_LOG = logging.getLogger(__name__)


@dataclass
class _Invitation:
    number: int
    code: str = field(repr=False)
    ends_s: float
    guesses: int = 0
    exchanges: int = 0


@dataclass(frozen=True)
class _Refusal:
    cause: Cause
    left: int = 0


class PairingDesk:
    """Takes invitations on the coordinator. Its threads run only while one is open.

    ``address`` is that of the coordinator's cluster port; the desk listens on the next port. The three callables are
    called in the desk's threads: ``cluster`` for what a joiner is told, ``on_paired`` with the new member before it is
    told, so that it is admitted when it comes, and ``on_event`` with one line for the log.
    """

    def __init__(
        self,
        address: Address,
        cluster: Callable[[], Cluster],
        on_paired: Callable[[Member], None],
        on_event: Callable[[str], None],
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
        self._lines: deque[str] = deque()
        self._rarely = Rarely()
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
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
            connections, threads = list(self._connections), list(self._threads)
        for connection in connections:
            with suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="pairing", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _serve(self, listener: socket.socket) -> None:
        listener.settimeout(_LONGEST_S)
        while self._is_needed(listener):
            try:
                connection, peer = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # out of descriptors, or the stranger has gone again
                _LOG.debug("the pairing desk cannot accept: %s", error)
                time.sleep(_LONGEST_S)
                continue
            with self._lock:
                if self._open and len(self._connections) < _CONNECTIONS:
                    self._connections.add(connection)
                    self._start(self._attend, connection, bare_host(str(peer[0])))
                else:
                    connection.close()

    def _is_needed(self, listener: socket.socket) -> bool:
        with self._lock:
            for invitation in list(self._open.values()):
                if self._clock() >= invitation.ends_s:
                    self._end(invitation, "expired", "expired unused")
            needed = bool(self._open)
            if not needed:
                listener.close()
                self._listener = None
                self._threads.discard(threading.current_thread())
        self._tell()
        return needed

    def _attend(self, connection: socket.socket, host: str) -> None:
        try:
            self._exchange(Channel(connection), host)
        except (RemoteProtocolError, OSError) as error:
            _LOG.debug("pairing with %s came to nothing: %s", host, error)
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._threads.discard(threading.current_thread())
            connection.close()
            self._tell()

    def _exchange(self, channel: Channel, host: str) -> None:
        try:
            asked = channel.receive()
        except OtherVersionError:
            channel.send("refuse", "unknown", 0)  # it sees our version by that
            raise
        if asked is None:
            return
        number, element = expect(asked, "join", int, bytes)
        begun = self._begin(number, host)
        if isinstance(begun, _Refusal):
            channel.send("refuse", begun.cause, begun.left)
            return
        spake = Spake("desk", begun)
        channel.send("desk", spake.element)
        seal = spake.seal(element, channel.transcript.digest())
        proof = channel.receive()
        if proof is None:
            return
        (box,) = expect(proof, "prove", bytes)
        judged = self._judge(number, seal, box, host)
        if isinstance(judged, _Refusal):
            channel.send("refuse", judged.cause, judged.left)
            return
        self._on_paired(judged)
        cluster = self._cluster()
        reply = (cluster.id, cluster.coordinator.name, cluster.coordinator.key, self._address.port)
        channel.send("admit", seal.close("desk", reply))

    def _begin(self, number: int, host: str) -> str | _Refusal:
        """The code of an open invitation."""
        with self._lock:
            invitation = self._open.get(number)
            if invitation is not None and self._clock() >= invitation.ends_s:
                self._end(invitation, "expired", "expired unused")
                invitation = None
            if invitation is not None and invitation.exchanges >= _EXCHANGES:
                self._end(invitation, "void", f"is void: {_EXCHANGES} exchanges were begun for it")
                invitation = None
            if invitation is None:
                if self._rarely.tells(host, "asked"):
                    self._lines.append(
                        f"{host} asked for invitation {number % 1000}, which is not open (expired, used or never made)"
                    )
                return _Refusal(self._closed.get(number, "unknown"))
            invitation.exchanges += 1
            return invitation.code

    def _judge(self, number: int, seal: Seal, box: bytes, host: str) -> Member | _Refusal:
        """Open the joiner's box; one at a time, so that guesses made at once are counted too."""
        with self._lock:
            invitation = self._open.get(number)
            if invitation is None:
                return _Refusal(self._closed.get(number, "unknown"))
            opened = seal.open("joiner", box)
            if opened is None:
                invitation.guesses += 1
                tally = f"{invitation.guesses} of {GUESSES}"
                self._lines.append(f"{host} guessed wrong ({tally}) for invitation {number}")
                if invitation.guesses >= GUESSES:
                    self._end(invitation, "void", f"is void after {GUESSES} wrong guesses")
                return _Refusal("wrong", GUESSES - invitation.guesses)
            name, key = expect(("", *opened), "", str, str)
            if not is_key(key):
                raise RemoteProtocolError("the joiner's key is malformed")
            member = Member.of(name, key)
            self._end(invitation, "used")
            self._lines.append(f"{member.name} at {host} joined by invitation {number}")
            return member

    def _end(self, invitation: _Invitation, cause: Cause, line: str = "") -> None:
        del self._open[invitation.number]
        self._closed[invitation.number] = cause
        if line:
            self._lines.append(f"invitation {invitation.number} {line}")

    def _tell(self) -> None:
        """Hand on the lines, outside the lock."""
        with suppress(IndexError):  # another thread has told the rest
            while self._lines:
                self._on_event(self._lines.popleft())
