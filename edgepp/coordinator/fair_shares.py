"""Fair shares between owners: a limit on concurrent answers, and a queue of messages in turns. Pure."""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairLimiter:
    """Limits how many answers run at once, so that no owner takes the share of the others.

    An owner that holds no slot always gets one, so the total is at most ``max_slots`` plus one per owner. Additional
    slots come out of ``max_slots``: an owner gets an additional one only while it holds fewer additional slots than
    are left.
    """

    def __init__(self, max_slots: int) -> None:
        self._max_slots = max_slots
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    def acquire(self, owner: str) -> bool:
        """Give ``owner`` one more slot; False when its share is used up."""
        additional = self._held[owner] - 1
        left = self._max_slots - sum(held - 1 for held in self._held.values() if held)
        if additional >= 0 and additional >= left:
            return False
        self._held[owner] += 1
        return True

    def release(self, owner: str) -> None:
        """Take one slot of ``owner`` back."""
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]


class FairQueue(Generic[T]):
    """A queue that serves its owners in turns: an owner with many items delays only its own items."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        """Limit the queue to ``max_items`` items and ``max_bytes`` bytes per owner."""
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._waiting: dict[str, deque[tuple[T, int]]] = {}
        """Items and their sizes by owner; the first owner is the next to be served."""
        self._bytes: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, owner: str, item: T, size_bytes: int) -> bool:
        """Append an item of ``owner``; False when the owner has reached its limit.

        An item larger than ``max_bytes`` is taken when the owner has no other item waiting.
        """
        waiting = self._waiting.get(owner)
        if waiting is not None and (
            len(waiting) >= self._max_items or self._bytes[owner] + size_bytes > self._max_bytes
        ):
            return False
        self._waiting.setdefault(owner, deque()).append((item, size_bytes))
        self._bytes[owner] += size_bytes
        return True

    def take(self) -> T:
        """Remove and return the next item of the owner whose turn it is. The queue must not be empty."""
        owner = next(iter(self._waiting))
        waiting = self._waiting.pop(owner)
        item, size_bytes = waiting.popleft()
        self._bytes[owner] -= size_bytes
        if waiting:
            self._waiting[owner] = waiting  # back to the end of the turns
        else:
            del self._bytes[owner]
        return item
