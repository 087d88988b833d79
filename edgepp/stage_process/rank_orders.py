"""Orders of rank 0 to the other ranks of its group, and their replies; a lost rank ends the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from edgepp.errors import PeerLost
from edgepp.stage_process.rank_links import RankLinks, RankLost
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.ranks import CacheDone, CacheOrder, KvExported, KvOrder, StepOrder

_Reply = TypeVar("_Reply", CacheDone, KvExported)
_Result = TypeVar("_Result")


class RankOrders:
    """The orders of rank 0 over the links of its group."""

    def __init__(self, links: RankLinks, on_lost: Callable[[PeerLost], None]) -> None:
        """``on_lost`` is called, and must not return, when another rank is gone."""
        self._links = links
        self._on_lost = on_lost
        self._is_released = False

    @property
    def others(self) -> range:
        """All ranks but rank 0."""
        return range(1, self._links.ranks)

    def give(self, order: CacheOrder | KvOrder | StepOrder, *frames: bytes) -> None:
        """Give an order to all other ranks."""
        if not self._is_released:
            self.guarded(lambda: self._links.send_all([encode(order), *frames]))

    def give_parts(self, order: KvOrder, parts: Sequence[bytes | memoryview]) -> None:
        """Give an order to all other ranks, with one frame for each."""
        for rank, part in zip(self.others, parts, strict=True):
            self.guarded(partial(self._links.send, rank, [encode(order), part]))

    def reply(self, rank: int, kind: type[_Reply]) -> tuple[_Reply, list[memoryview]]:
        """The reply of a rank to the last order, awaited, and its frames."""
        while True:
            message, frames = self.guarded(lambda: self._links.next_of(rank))
            if isinstance(message, kind):
                return message, frames
            # Others are partial sums and faults of a step that failed.

    def check(self) -> None:
        """End the process where another rank is gone."""
        if not self._is_released:
            self.guarded(self._links.check_connected)

    def release(self) -> None:
        """Order nothing from now on."""
        self._is_released = True

    def broken(self, rank: int, what: str) -> RankLost:
        """The error of a rank that broke the protocol, after the process was to end for it."""
        lost = self._links.broken(rank, what)
        self._on_lost(lost)
        return lost

    def guarded(self, work: Callable[[], _Result]) -> _Result:
        """The result of ``work``; the process ends where that finds a rank lost."""
        try:
            return work()
        except PeerLost as lost:
            self._on_lost(lost)
            raise
