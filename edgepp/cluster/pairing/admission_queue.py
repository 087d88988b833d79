"""Which connections the pairing server serves when many clients come: idle ones must not keep a joining node out.

A joining node sends its greeting as soon as it is connected, and proves its code within a moment of the server's
answer. So a connection that has sent nothing is dropped first, then one that was answered more than ``PROOF_WAIT_S``
ago; a connection that waits for the server's answer is never dropped. One network gets a part of the connections only.
Further connections wait and are admitted in the order of arrival, so a node that connects once is served before
clients that connect again and again.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from edgepp.wire.connection_limits import network_of

MAX_CONNECTIONS = 64
MAX_CONNECTIONS_PER_NETWORK = 32
MAX_WAITING = 256
"""Connections that wait to be admitted."""
MAX_WAITING_PER_NETWORK = 192
PROOF_WAIT_S = 1.0
"""How long an answered client may take for its proof before its connection can be dropped for another one."""


class ClientConnection:
    """One connection to the pairing server."""

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.connection = connection
        self.host = host
        self.network = network_of(host)
        self._greeted = False
        self._answered_s: float | None = None

    def mark_greeted(self) -> None:
        """Note that the client has sent its greeting and waits for the server."""
        self._greeted = True

    def mark_answered(self) -> None:
        """Note that the server answers, and waits for the client's proof from now on."""
        self._answered_s = time.monotonic()

    def may_be_dropped(self, now_s: float) -> bool:
        """Whether the client has shown that it is hardly a joining node."""
        if self._answered_s is not None:
            return now_s - self._answered_s > PROOF_WAIT_S
        return not self._greeted and not self._has_sent()

    def shut_down(self) -> None:
        """End the connection; the thread that reads from the connection closes the socket."""
        with suppress(OSError):  # the connection has ended already
            self.connection.shutdown(socket.SHUT_RDWR)

    def _has_sent(self) -> bool:
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0))


class AdmissionQueue:
    """The admitted connections, oldest first, and those that wait. One lock of the owner guards every call.

    Length, iteration and membership are those of the admitted connections.
    """

    def __init__(self) -> None:
        self._admitted: dict[ClientConnection, None] = {}
        self._waiting: dict[ClientConnection, None] = {}

    def __len__(self) -> int:
        return len(self._admitted)

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(list(self._admitted))

    def __contains__(self, client: ClientConnection) -> bool:
        return client in self._admitted

    def enqueue(self, client: ClientConnection) -> bool:
        """Let a connection wait; False where the queue, or its network's part of the queue, is full."""
        of_same_network = sum(other.network == client.network for other in self._waiting)
        if len(self._waiting) >= MAX_WAITING or of_same_network >= MAX_WAITING_PER_NETWORK:
            return False
        self._waiting[client] = None
        return True

    def admit_next(self) -> ClientConnection | None:
        """Admit and return the first waiting connection that can be admitted; None where there is none."""
        full_networks: set[str] = set()
        for client in self._waiting:
            if client.network in full_networks:
                continue
            if self.admit(client):
                del self._waiting[client]
                return client
            full_networks.add(client.network)
        return None

    def clear_waiting(self) -> list[ClientConnection]:
        """Empty the queue and return the connections that waited."""
        waiting, self._waiting = list(self._waiting), {}
        return waiting

    def admit(self, client: ClientConnection) -> bool:
        """Admit a connection, where necessary in place of one that may be dropped; False where there is no room."""
        rivals = self._rivals(client)
        if rivals:
            now_s = time.monotonic()
            dropped = next((one for one in rivals if one.may_be_dropped(now_s)), None)
            if dropped is None:
                return False
            self.discard(dropped)
            dropped.shut_down()
        self._admitted[client] = None
        return True

    def discard(self, client: ClientConnection) -> None:
        """Forget a connection that has ended."""
        self._admitted.pop(client, None)

    def _rivals(self, newcomer: ClientConnection) -> list[ClientConnection]:
        """The connections of which one must be dropped for the newcomer; empty where there is room.

        They are of the newcomer's network where that one has its part already, else of any, largest network first.
        """
        counts = Counter(client.network for client in self._admitted)
        if counts[newcomer.network] >= MAX_CONNECTIONS_PER_NETWORK:
            return [client for client in self._admitted if client.network == newcomer.network]
        if len(self._admitted) < MAX_CONNECTIONS:
            return []
        return sorted(self._admitted, key=lambda client: -counts[client.network])
