"""Turns go to owners in equal shares, whoever asked first."""

from __future__ import annotations

import threading
import time

import pytest

from edgepp.errors import Overloaded
from edgepp.fair_turns import FairTurns


class Crowd:
    """Threads that take turns, and the order in which they got them."""

    def __init__(self, turns: FairTurns) -> None:
        self._turns = turns
        self._threads: list[threading.Thread] = []
        self.served: list[str] = []

    def ask(self, owner: str, cost: float = 1.0) -> None:
        """Have a thread wait for a turn; returns when it waits."""
        before = self._turns.num_waiting(owner)
        self._threads.append(threading.Thread(target=self._take, args=(owner, cost), daemon=True))
        self._threads[-1].start()
        while self._turns.num_waiting(owner) == before:
            time.sleep(0.001)

    def _take(self, owner: str, cost: float) -> None:
        with self._turns.turn(owner, cost):
            self.served.append(owner)

    def finish(self) -> list[str]:
        for thread in self._threads:
            thread.join(30)
        return self.served


def test_an_owner_with_much_work_delays_its_own() -> None:
    turns = FairTurns(1, 1, 10)
    crowd = Crowd(turns)
    with turns.turn("many"):
        for _ in range(3):
            crowd.ask("many")
        crowd.ask("one")
        crowd.ask("two")
    assert crowd.finish() == ["one", "two", "many", "many", "many"]


def test_an_owner_pays_for_the_cost_of_its_turns() -> None:
    turns = FairTurns(1, 1, 10)
    crowd = Crowd(turns)
    with turns.turn("holder"):
        for _ in range(2):
            crowd.ask("large", 10.0)
        for _ in range(4):
            crowd.ask("small", 1.0)
    assert crowd.finish() == ["large", "small", "small", "small", "small", "large"]


def test_an_owner_cannot_take_all_places_at_once() -> None:
    turns = FairTurns(2, 1, 10)
    crowd = Crowd(turns)
    with turns.turn("many"):
        crowd.ask("many")
        with turns.turn("one"):
            assert crowd.served == []
    assert crowd.finish() == ["many"]


def test_an_owner_may_wait_for_a_few_turns_only() -> None:
    turns = FairTurns(1, 1, 2)
    crowd = Crowd(turns)
    with turns.turn("many"):
        crowd.ask("many")
        crowd.ask("many")
        with pytest.raises(Overloaded, match="2 requests of this asker"), turns.turn("many"):
            pytest.fail("got a third place in the queue")
        crowd.ask("one")
    assert crowd.finish() == ["one", "many", "many"]


def test_a_turn_that_fails_is_given_back() -> None:
    turns = FairTurns(1, 1, 1)
    with pytest.raises(ValueError, match="broken"), turns.turn("one"):
        raise ValueError("broken")
    with turns.turn("two"):
        assert turns.num_waiting("two") == 0
