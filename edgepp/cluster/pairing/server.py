"""The pairing server of a coordinator: takes invitation codes on the port after the cluster port.

The server listens only while an invitation is open. ``protocol`` has the messages and the reason why a code of two
words is enough, ``invitations`` counts guesses, ``admission_queue`` decides which connection is dropped when many
clients come, and ``client`` is the other side.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from edgepp.cluster.identity import Cluster, PairedNode
from edgepp.cluster.pairing.admission_queue import AdmissionQueue, ClientConnection
from edgepp.cluster.pairing.invitations import Invitations, Refusal
from edgepp.cluster.pairing.protocol import (
    ATTEMPT_ID_BYTES,
    EXCHANGE_S,
    Channel,
    OtherVersionError,
    Seal,
    Spake,
    expect,
    listen,
)
from edgepp.errors import EdgeppError, RemoteProtocolError
from edgepp.events import NodePaired, OnEvent, PairingFailed
from edgepp.wire.address import Address
from edgepp.wire.security import bare_host

GREETING_S = 3.0
"""How long a new connection may stay silent."""
_EXPIRY_CHECK_S = 0.2
"""The time between two looks for expired invitations."""
_ANSWER_STEP_S = 0.1
"""Answers leave at multiples of this time, so that timing tells nothing about the computation with the code."""
log = logging.getLogger(__name__)


class PairingServer:
    """Takes invitation codes on the coordinator. Its threads run only while an invitation is open."""

    def __init__(
        self,
        address: Address,
        cluster: Callable[[], Cluster],
        on_paired: Callable[[PairedNode], None],
        on_event: OnEvent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for invitations to the cluster whose coordinator listens at ``address``.

        The three callables are called in the server's threads: ``cluster`` for the cluster that a node joins,
        ``on_paired`` with the new node before the node is told, so that the coordinator already admits the node when
        it connects, and ``on_event`` with what happened. ``clock`` gives seconds.
        """
        self._address = address
        self._cluster = cluster
        self._on_paired = on_paired
        self._on_event = on_event
        self._lock = threading.Lock()
        """Guards ``_invitations``, ``_connections``, ``_listener`` and ``_threads``."""
        self._events: deque[NodePaired | PairingFailed] = deque()
        self._invitations = Invitations(self._report, clock)
        self._listener: socket.socket | None = None
        self._connections = AdmissionQueue()
        self._computing = threading.Lock()
        """Held while an exchange is computed, so that all clients together take one core at most."""
        self._threads: set[threading.Thread] = set()

    def invite(self) -> str:
        """Open an invitation; returns its code, good for ``invitations.INVITATION_S`` seconds and one node.

        Raises:
            UsageError: too many invitations are open, or the port is taken.
        """
        with self._lock:
            self._invitations.check_room()
            if self._listener is None:
                self._listener = listen(Address(self._address.host, self._address.port + 1))
                self._start(self._serve, self._listener)
            return self._invitations.open()

    def numbers(self) -> tuple[int, ...]:
        """The numbers of the open invitations."""
        with self._lock:
            return self._invitations.numbers

    def close(self) -> None:
        """Close all invitations and connections, and end the threads."""
        with self._lock:
            self._invitations.clear()
            clients, threads = list(self._connections), list(self._threads)
        for client in clients:
            client.shut_down()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        """Start a thread, which ``close`` waits for."""
        self._threads = {one for one in self._threads if one.is_alive()}
        thread = threading.Thread(target=target, args=arguments, name="pairing", daemon=True)
        thread.start()
        self._threads.add(thread)

    def _serve(self, listener: socket.socket) -> None:
        """Accept connections while an invitation is open: the listening thread."""
        listener.settimeout(_EXPIRY_CHECK_S)
        while self._is_needed(listener):
            self._admit_waiting()
            try:
                connection, peer = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # no descriptor is left, or the client has disconnected already
                log.debug("the pairing server cannot accept a connection: %s", error)
                time.sleep(_EXPIRY_CHECK_S)
                continue
            client = ClientConnection(connection, bare_host(str(peer[0])))
            with self._lock:
                waits = bool(self._invitations) and self._connections.enqueue(client)
            if not waits:
                connection.close()

    def _admit_waiting(self) -> None:
        """Start a thread for each waiting client that can be admitted."""
        with self._lock:
            while self._invitations and (client := self._connections.admit_next()) is not None:
                try:
                    self._start(self._serve_client, client)
                except RuntimeError as error:  # the system has no thread left
                    log.debug("the pairing server cannot serve %s: %s", client.host, error)
                    self._connections.discard(client)
                    client.connection.close()

    def _is_needed(self, listener: socket.socket) -> bool:
        """Whether an invitation is open; closes the listener where none is."""
        with self._lock:
            self._invitations.expire()
            needed = bool(self._invitations)
            if not needed:
                for client in self._connections.clear_waiting():
                    client.connection.close()
                listener.close()
                self._listener = None
        self._deliver_events()
        return needed

    def _serve_client(self, client: ClientConnection) -> None:
        """Pair with one client: the thread of one connection."""
        try:
            self._exchange(Channel(client.connection, GREETING_S), client)
        except (RemoteProtocolError, OSError) as error:
            log.debug("pairing with %s failed: %s", client.host, error)
        finally:
            with self._lock:
                self._connections.discard(client)
            client.connection.close()
            self._deliver_events()

    def _exchange(self, channel: Channel, client: ClientConnection) -> None:
        """Run one exchange as ``protocol`` draws it.

        Raises:
            RemoteProtocolError: the client sends something else than the protocol's messages.
            OSError: the connection broke, or the exchange took too long.
        """
        try:
            joining = channel.receive()
        except OtherVersionError:
            channel.send("refuse", "unknown", 0)  # the message tells the client this side's version
            raise
        if joining is None:
            return
        number, element, attempt = expect(joining, "join", int, bytes, bytes, last=b"")
        attempt = attempt[:ATTEMPT_ID_BYTES]
        client.mark_greeted()
        channel.allow(EXCHANGE_S)
        with self._lock:
            code = self._invitations.code_of(number, attempt, client.host)
        if isinstance(code, Refusal):
            channel.send("refuse", code.cause, code.guesses_left)
            return
        seal = self._agree(channel, client, code, element)
        if seal is None or (proof := channel.receive()) is None:
            return
        (box,) = expect(proof, "prove", bytes)
        with self._lock:  # one at a time, so that guesses made at once are all counted
            judged = self._invitations.judge(number, attempt, client.host, seal, box)
        if isinstance(judged, PairedNode):
            judged = self._pair(judged, number, client.host)
        if isinstance(judged, Refusal):
            channel.send("refuse", judged.cause, judged.guesses_left)
            return
        cluster = self._cluster()
        reply = (cluster.id, cluster.coordinator.name, cluster.coordinator.key, self._address.port)
        channel.send("admit", seal.close("server", reply))

    def _agree(self, channel: Channel, client: ClientConnection, code: str, element: bytes) -> Seal | None:
        """Send the server's element; None where the client was dropped in favour of another one."""
        with self._computing:
            if client not in self._connections:
                return None
            began_s = time.monotonic()
            spake = Spake("server", code)
            message = channel.prepare("server", spake.element, self._cluster().id)
            seal = spake.seal(element, channel.transcript.digest())
        time.sleep((began_s - time.monotonic()) % _ANSWER_STEP_S)
        client.mark_answered()
        channel.flush(message)
        return seal

    def _pair(self, node: PairedNode, number: int, host: str) -> PairedNode | Refusal:
        try:
            self._on_paired(node)
        except EdgeppError as error:
            self._report(f"{node.name} at {host} proved invitation {number} and cannot be let in: {error}")
            return Refusal("failed")
        self._events.append(NodePaired(node.name, host, f"invitation {number}"))
        return node

    def _report(self, text: str) -> None:
        self._events.append(PairingFailed(text))

    def _deliver_events(self) -> None:
        """Hand over the events so far. Called without the lock, since ``on_event`` may take its time."""
        with suppress(IndexError):  # another thread has delivered the rest
            while self._events:
                self._on_event(self._events.popleft())
