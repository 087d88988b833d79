"""Turns at scarce work for several owners, such as one process that all requests share. Safe to use from any thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgepp.errors import Overloaded


@dataclass(eq=False)
class _Turn:
    owner: str
    begin: float
    """When it would begin, in the cost of the work that precedes it, if each owner had the same share."""


class FairTurns:
    """Gives each owner the same share of the work: an owner that waits for much delays only its own work."""

    def __init__(self, max_at_once: int, max_of_owner: int, max_waiting: int) -> None:
        """Let ``max_at_once`` turns run at once, ``max_of_owner`` of an owner, while ``max_waiting`` of it wait."""
        self._max_at_once, self._max_of_owner, self._max_waiting = max_at_once, max_of_owner, max_waiting
        self._changed = threading.Condition()
        self._running: Counter[str] = Counter()
        self._waiting: list[_Turn] = []
        """In order of arrival."""
        self._ends: dict[str, float] = {}
        """Where the last turn of each owner ends, by the scale of ``_Turn.begin``."""
        self._now = 0.0
        """Where the turn that ran last begins."""

    @contextmanager
    def turn(self, owner: str, cost: float = 1.0) -> Iterator[None]:
        """Wait for a turn of ``owner`` at work of this ``cost``, and hold it inside the ``with`` statement.

        Raises:
            Overloaded: too many turns of the owner wait already.
        """
        with self._changed:
            turn = self._queued(owner, cost)
            try:
                self._changed.wait_for(lambda: self._next() is turn)
            finally:  # also of an interrupt
                self._waiting.remove(turn)
                self._changed.notify_all()
            self._running[owner] += 1
            self._now = turn.begin
        try:
            yield
        finally:
            with self._changed:
                self._running[owner] -= 1
                self._running += Counter()  # drops the zeros
                self._forget_idle()
                self._changed.notify_all()

    def num_waiting(self, owner: str) -> int:
        """Turns that ``owner`` waits for."""
        return sum(turn.owner == owner for turn in self._waiting)

    def _queued(self, owner: str, cost: float) -> _Turn:
        if self.num_waiting(owner) >= self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} requests of this asker wait for the same work already", "ask again in a moment"
            )
        turn = _Turn(owner, max(self._now, self._ends.get(owner, 0.0)))
        self._ends[owner] = turn.begin + cost
        self._waiting.append(turn)
        return turn

    def _next(self) -> _Turn | None:
        """The turn that runs next; None while no more may run."""
        if self._running.total() >= self._max_at_once:
            return None
        free = (turn for turn in self._waiting if self._running[turn.owner] < self._max_of_owner)
        return min(free, key=lambda turn: turn.begin, default=None)

    def _forget_idle(self) -> None:
        busy = {*self._running, *(turn.owner for turn in self._waiting)}
        self._ends = {owner: end for owner, end in self._ends.items() if owner in busy or end > self._now}
