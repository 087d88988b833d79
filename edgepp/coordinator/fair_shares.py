"""Shares of what is scarce, by owner: places for answers, and turns for messages. Pure."""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairPlaces:
    """Who has how many of a number of places.

    An owner without one always gets one, so there are at most ``most`` and one for each owner. Further ones come out
    of the ``most``, of which nobody takes more than is left to others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    def take(self, owner: str) -> bool:
        """Give ``owner`` one more place; whether there was one for it."""
        further = self._held[owner] - 1
        left = self._most - sum(held - 1 for held in self._held.values() if held)
        if further >= 0 and further >= left:
            return False
        self._held[owner] += 1
        return True

    def give_back(self, owner: str) -> None:
        """Take one place of ``owner`` back."""
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]


class FairQueue(Generic[T]):
    """What waits to be handled, one owner after the other: who sends most waits longest."""

    def __init__(self, most: int, most_bytes: int) -> None:
        """Each owner may have so many items, and so many bytes, waiting."""
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: dict[str, deque[tuple[T, int]]] = {}
        """By owner; whose turn it is comes first."""
        self._bytes: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, owner: str, item: T, size: int) -> bool:
        """Let an item of ``size`` bytes wait; False where too much of this owner's does already."""
        waiting = self._waiting.get(owner)
        if waiting is not None and (len(waiting) >= self._most or self._bytes[owner] + size > self._most_bytes):
            return False
        self._waiting.setdefault(owner, deque()).append((item, size))
        self._bytes[owner] += size
        return True

    def take(self) -> T:
        """The next item of the owner whose turn it is; there must be one."""
        owner = next(iter(self._waiting))
        waiting = self._waiting.pop(owner)
        item, size = waiting.popleft()
        self._bytes[owner] -= size
        if waiting:
            self._waiting[owner] = waiting  # behind the others
        else:
            del self._bytes[owner]
        return item
