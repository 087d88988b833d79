"""Who is served at the pairing desk, and who gives way: strangers with open connections must not keep a joiner out.

A joiner speaks as soon as it is connected, and proves its code within a moment of the desk's answer. So a caller that
says nothing gives way first, then one that was answered a while ago; a caller that the desk is to answer never does.
One host has a part of the places only. Callers without a place queue and are seated in the order of their arrival: a
joiner that comes once is served before strangers who come again and again.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from edgepp.wire.connection_limits import network_of

PLACES = 64
PLACES_OF_ONE_HOST = 32
QUEUE = 256
"""Callers without a place that may wait for one."""
QUEUE_OF_ONE_HOST = 192
PATIENCE_S = 1.0
"""How long an answered caller keeps its place when others want it."""


class Caller:
    """One connection at the desk."""

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.connection = connection
        self.host = host
        self.network = network_of(host)
        self._served = False
        self._awaited_s: float | None = None

    def is_served(self) -> None:
        """It has asked: now it waits for the desk."""
        self._served = True

    def is_awaited(self) -> None:
        """It is being answered: now the desk waits for it."""
        self._awaited_s = time.monotonic()

    def gives_way(self, now_s: float) -> bool:
        """Whether it can be expected to be no joiner."""
        if self._awaited_s is not None:
            return now_s - self._awaited_s > PATIENCE_S
        return not self._served and not self._has_spoken()

    def hang_up(self) -> None:
        """End the connection; the thread that reads from it closes it."""
        with suppress(OSError):  # it has ended by itself
            self.connection.shutdown(socket.SHUT_RDWR)

    def _has_spoken(self) -> bool:
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0))


class AdmissionQueue:
    """The callers with a place, longest there first, and the queue. One lock of the owner guards every call."""

    def __init__(self) -> None:
        self._callers: dict[Caller, None] = {}
        self._queue: dict[Caller, None] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def __iter__(self) -> Iterator[Caller]:
        return iter(list(self._callers))

    def __contains__(self, caller: Caller) -> bool:
        return caller in self._callers

    def enqueue(self, caller: Caller) -> bool:
        """Let a caller wait for a place; False where the queue, or the part of it of one host, is full."""
        of_its_network = sum(other.network == caller.network for other in self._queue)
        if len(self._queue) >= QUEUE or of_its_network >= QUEUE_OF_ONE_HOST:
            return False
        self._queue[caller] = None
        return True

    def seat_next(self) -> Caller | None:
        """Give a place to the first caller in the queue that can have one; None where there is no such caller."""
        full: set[str] = set()
        for caller in self._queue:
            if caller.network in full:
                continue
            if self.add(caller):
                del self._queue[caller]
                return caller
            full.add(caller.network)
        return None

    def dismiss_queue(self) -> list[Caller]:
        """Empty the queue; the callers that were in it."""
        queue, self._queue = list(self._queue), {}
        return queue

    def add(self, caller: Caller) -> bool:
        """Take a newcomer in, in place of another where all places are taken; False where nobody gives way."""
        rivals = self._rivals(caller)
        if rivals:
            now_s = time.monotonic()
            going = next((one for one in rivals if one.gives_way(now_s)), None)
            if going is None:
                return False
            self.discard(going)
            going.hang_up()
        self._callers[caller] = None
        return True

    def discard(self, caller: Caller) -> None:
        """It has gone."""
        self._callers.pop(caller, None)

    def _rivals(self, newcomer: Caller) -> list[Caller]:
        """Those of whom one must go for the newcomer: of its own network where that has its part, else of any."""
        counts = Counter(caller.network for caller in self._callers)
        if counts[newcomer.network] >= PLACES_OF_ONE_HOST:
            return [caller for caller in self._callers if caller.network == newcomer.network]
        if len(self._callers) < PLACES:
            return []
        return sorted(self._callers, key=lambda caller: -counts[caller.network])
