"""Connections to all machines that may have a joining node's invitation, begun at once and in bounded number.

Any machine on the network can claim an invitation, at many addresses, and then say nothing. So no machine is waited
for while another one could answer: a machine that stays silent gives way to those that wait for a connection.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from edgepp.backoff import doubled_s
from edgepp.cluster.pairing.protocol import Channel, Seal, Spake
from edgepp.wire.address import Address

MAX_CONNECTIONS = 96
"""Connections of one joining node at once."""
SILENT_S = 1.0
"""How long a machine may be silent before its connection can be closed for that of another one."""
_FIRST_RETRY_S = 0.05
_MAX_RETRY_S = 1.0
State: TypeAlias = Literal["waits", "dialled", "greeted", "answered", "proved"]
log = logging.getLogger(__name__)


class Candidate:
    """One IP address at which the pairing server may be, with the state of the exchange there."""

    def __init__(self, address: Address, family: int, where: Any) -> None:
        """``address`` is that of the cluster port, ``where`` that of the pairing port behind it, as sockets take it."""
        self.address = address
        self._family, self._where = family, where
        self.state: State = "waits"
        self.due_s = 0.0
        """When to connect next (monotonic), while the candidate waits."""
        self.since_s = 0.0
        """When the present state began (monotonic), for a connection."""
        self._num_tries = 0
        self.connection: socket.socket | None = None
        self.channel: Channel | None = None
        self.spake: Spake | None = None
        self.element: object = None
        """The server's SPAKE2 element, unchecked, once the server has answered."""
        self.seal: Seal | None = None
        """The keys of the exchange, once the client has sent its proof."""

    def dial(self) -> socket.socket | None:
        """Begin a connection, which can be written to once it is made; None where that is impossible."""
        connection = socket.socket(self._family, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._where)
        except BlockingIOError:
            pass
        except OSError as error:
            log.debug("cannot reach %s: %s", self.address, error)
            connection.close()
            return None
        self.connection = connection
        self.enter("dialled")
        return connection

    def enter(self, state: State) -> None:
        """Begin another state of the connection."""
        self.state, self.since_s = state, time.monotonic()

    def wait(self, *, broken: bool) -> None:
        """Wait for another connection; ``broken``: the last one was broken off, so that the wait gets longer."""
        self._num_tries += broken
        pause_s = doubled_s(_FIRST_RETRY_S, self._num_tries - 1, _MAX_RETRY_S) if broken else 0.0
        self.enter("waits")
        self.due_s = self.since_s + pause_s


class Candidates:
    """The candidates of one joining node: those that wait for a connection, and those that have one."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        """Look up the ``addresses``, in the order in which connections begin."""
        self._waiting = [one for address in dict.fromkeys(addresses) for one in _looked_up(address)]
        self._connected: dict[Candidate, None] = {}
        self._selector = selectors.DefaultSelector()

    @property
    def done(self) -> bool:
        """Whether no candidate is left."""
        return not self._waiting and not self._connected

    def in_state(self, state: State) -> list[Candidate]:
        """The connected candidates in this state, first the one that has been in it for longest."""
        return sorted((one for one in self._connected if one.state == state), key=lambda one: one.since_s)

    def begin(self) -> None:
        """Begin the connections that are due, as many as there may be."""
        now_s = time.monotonic()
        for candidate in [one for one in self._waiting if one.due_s <= now_s]:
            if len(self._connected) >= MAX_CONNECTIONS and not self._make_room(now_s):
                return
            self._waiting.remove(candidate)
            connection = candidate.dial()
            if connection is not None:
                self._connected[candidate] = None
                self._selector.register(connection, selectors.EVENT_WRITE, candidate)

    def ready(self, wait_s: float) -> list[Candidate]:
        """The candidates whose connection is made or broken, or has sent something, within ``wait_s`` seconds."""
        now_s = time.monotonic()
        due_s = [max(one.due_s, now_s) for one in self._waiting]
        if len(self._connected) >= MAX_CONNECTIONS:  # room is made for those that wait once another one is silent
            due_s = [max(now_s, one.since_s + SILENT_S) for one in self._silent()] if due_s else []
        wait_s = min([wait_s, *(due - now_s for due in due_s)])
        return [key.data for key, _ in self._selector.select(max(0.0, wait_s))]

    def listen(self, candidate: Candidate) -> None:
        """Look for the candidate's next message from now on."""
        if candidate.connection is not None:
            self.ignore(candidate)
            self._selector.register(candidate.connection, selectors.EVENT_READ, candidate)

    def ignore(self, candidate: Candidate) -> None:
        """Leave what the candidate sends unread."""
        if candidate.connection is not None and candidate.connection in self._selector.get_map():
            self._selector.unregister(candidate.connection)

    def drop(self, candidate: Candidate) -> None:
        """Close the candidate's connection, and forget the candidate."""
        self.ignore(candidate)
        self._connected.pop(candidate, None)
        if candidate.connection is not None:
            candidate.connection.close()
            candidate.connection = None

    def retry(self, candidate: Candidate, *, broken: bool) -> None:
        """Close the candidate's connection, and make another one after those that wait already."""
        self.drop(candidate)
        candidate.wait(broken=broken)
        self._waiting.append(candidate)

    def close(self) -> None:
        """Close all connections."""
        for candidate in list(self._connected):
            self.drop(candidate)
        self._selector.close()

    def _silent(self) -> list[Candidate]:
        return [*self.in_state("dialled"), *self.in_state("greeted")]

    def _make_room(self, now_s: float) -> bool:
        silent = [one for one in self._silent() if now_s - one.since_s >= SILENT_S]
        if silent:
            self.retry(silent[0], broken=False)
        return bool(silent)


def _looked_up(address: Address) -> list[Candidate]:
    """A candidate for each IP address of the host, with the pairing server on the port after the cluster port."""
    try:
        found = socket.getaddrinfo(address.host, address.port + 1, type=socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError) as error:
        log.debug("cannot look up %s: %s", address, error)
        return []
    return [Candidate(address, family, where) for family, _, _, _, where in found]
