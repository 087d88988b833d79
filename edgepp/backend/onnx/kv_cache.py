"""Where each sequence's keys and values lie: in which arena and lane, and when it pays to move them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from edgepp.backend.onnx.kv_arena import Arena, CacheShape

FIRST_POSITIONS = 1024
"""Positions of the shortest lanes; a sequence that outgrows its lane moves to a longer one."""

_QUADRUPLED = 4096  # longer lanes double: attention's working space grows with them
_MOVED_BYTES = 64 << 20  # what one step copies at most to bring a batch together, or one sequence


@dataclass(eq=False)
class CachedSequence:
    """One sequence: ``length`` positions are filled, in ``lane`` of ``arena``."""

    number: int
    capacity: int
    arena: Arena
    lane: int
    length: int = 0
    touched: int = 0
    """Positions whose pages are resident."""
    companions: frozenset[int] = frozenset()
    """The numbers of the batch that it was last in."""


@dataclass(frozen=True)
class LaneRun:
    """Neighbouring lanes of an arena that are computed together."""

    arena: Arena
    first: int
    places: tuple[CachedSequence, ...]


class SequenceCaches:
    """The arenas of one stage and who lies where."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._arenas: list[Arena] = []
        self._places: dict[tuple[Arena, int], CachedSequence] = {}
        self._opened = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that sequences have touched."""
        return sum(self._shape.resident_bytes(place.touched) for place in self._places.values())

    def open(self, capacity: int) -> CachedSequence:
        """Room for a new sequence of at most ``capacity`` positions.

        Raises:
            MemoryError: the system gives no more address space.
        """
        return self._occupy(FIRST_POSITIONS, capacity)

    def fork(self, source: CachedSequence, length: int, capacity: int) -> CachedSequence:
        """Room for a new sequence of at most ``capacity`` positions, the first ``length`` of them ``source``'s.

        Raises:
            MemoryError: the system gives no more address space.
        """
        place = self._occupy(_stride(FIRST_POSITIONS, min(length + 1, capacity)), capacity)
        _copy(source, place.arena, place.lane, length)
        place.length = place.touched = length
        return place

    def resize(self, place: CachedSequence, capacity: int) -> None:
        """Let a sequence reach ``capacity`` positions, at least those that it has, and give back memory for more."""
        place.capacity = capacity
        if place.touched > capacity:
            place.arena.cut(place.lane, capacity)
            place.touched = capacity

    def free(self, place: CachedSequence) -> None:
        """Give a sequence's memory back."""
        del self._places[place.arena, place.lane]
        place.arena.release(place.lane)

    def reserve(self, place: CachedSequence, positions: int) -> None:
        """See to it that ``place`` can hold ``positions``.

        Raises:
            MemoryError: the system gives no more address space.
        """
        if positions > place.arena.stride:
            arena = self._with_room(_stride(place.arena.stride, positions))
            self._move(place, arena, min(arena.free))
        place.touched = max(place.touched, positions)

    def runs(self, batch: Sequence[CachedSequence]) -> list[LaneRun]:
        """Few runs that compute ``batch``, each place of which has room for one position more.

        A batch that comes a second time is brought together first, a few sequences a step: what comes once would be
        copied for nothing.
        """
        together = frozenset(place.number for place in batch)
        runs = self._neighbours(batch)
        if len(runs) > 1 and all(place.companions == together for place in batch):
            with suppress(MemoryError):  # then it stays in pieces
                self._gather(batch)
            runs = self._neighbours(batch)
        for place in batch:
            place.companions = together
        return runs

    def _neighbours(self, batch: Sequence[CachedSequence]) -> list[LaneRun]:
        runs: list[list[CachedSequence]] = []
        for place in sorted(batch, key=lambda place: (self._arenas.index(place.arena), place.lane)):
            before = runs[-1][-1] if runs else None
            if before is not None and before.arena is place.arena and before.lane + 1 == place.lane:
                runs[-1].append(place)
            else:
                runs.append([place])
        return [LaneRun(run[0].arena, run[0].lane, tuple(run)) for run in runs]

    def _gather(self, batch: Sequence[CachedSequence]) -> None:
        """Move some of ``batch`` so that it comes to lie in neighbouring lanes, of the longest stride that it has."""
        arena, lanes = self._window(batch, max(place.arena.stride for place in batch))
        vacant = [lane for lane in lanes if lane in arena.free]
        moved = 0
        for place in batch:
            if place.arena is arena and place.lane in lanes:
                continue
            if not vacant or moved > _MOVED_BYTES:
                return
            self._move(place, arena, vacant.pop())
            moved += place.length * self._shape.position_bytes

    def _window(self, batch: Sequence[CachedSequence], stride: int) -> tuple[Arena, range]:
        """As many neighbouring lanes as ``batch`` needs, free but for it, and holding most of it already."""
        best: tuple[int, Arena, range] | None = None
        for arena in self._arenas:
            if arena.stride != stride:
                continue
            rows = min(len(batch), arena.lanes)
            mine = {place.lane for place in batch if place.arena is arena}
            for first in range(arena.lanes - rows + 1):
                lanes = range(first, first + rows)
                held = len(mine.intersection(lanes))
                if held + len(arena.free.intersection(lanes)) == rows and (best is None or held > best[0]):
                    best = held, arena, lanes
        if best is not None:
            return best[1], best[2]
        self._arenas.append(Arena(self._shape, stride))
        return self._arenas[-1], range(min(len(batch), self._arenas[-1].lanes))

    def _occupy(self, stride: int, capacity: int) -> CachedSequence:
        arena = self._with_room(stride)
        self._opened += 1
        place = CachedSequence(self._opened, capacity, arena, arena.take())
        self._places[arena, place.lane] = place
        return place

    def _with_room(self, stride: int) -> Arena:
        for arena in self._arenas:
            if arena.stride == stride and arena.free:
                return arena
        self._arenas.append(Arena(self._shape, stride))
        return self._arenas[-1]

    def _move(self, place: CachedSequence, arena: Arena, lane: int) -> None:
        _copy(place, arena, lane, place.length)
        self.free(place)
        place.arena, place.lane, place.touched = arena, arena.take(lane), place.length + 1
        self._places[arena, lane] = place


def _stride(stride: int, positions: int) -> int:
    """The stride of lanes for ``positions``, from ``stride`` on."""
    while stride < positions:
        stride *= 4 if stride < _QUADRUPLED else 2
    return stride


def _copy(source: CachedSequence, arena: Arena, lane: int, length: int) -> None:
    for name, old in source.arena.memory.items():
        arena.memory[name][lane, :, :length] = old[source.lane, :, :length]
