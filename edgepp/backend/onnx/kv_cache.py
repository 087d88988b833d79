"""Allocation of lanes: the lane and arena that hold the keys and values of each sequence, and moves between lanes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from edgepp.backend.base import KvChunk
from edgepp.backend.onnx.kv_arena import Arena, CacheShape
from edgepp.layer_range import LayerRange

FIRST_POSITIONS = 1024
"""Positions of the shortest lanes; a sequence that outgrows its lane moves to a longer one."""

_QUADRUPLED = 4096  # positions; longer lanes only double, since the scratch memory of attention grows with the lane
_MOVED_BYTES = 64 << 20  # limit of what a step copies to gather a batch, except that one sequence may exceed it


@dataclass(eq=False)
class CachedSequence:
    """The keys and values of one sequence: ``length`` positions are filled, in ``lane`` of ``arena``."""

    number: int
    capacity: int
    arena: Arena
    lane: int
    length: int = 0
    touched: int = 0
    """Positions whose pages are resident."""
    last_batch: frozenset[int] = frozenset()
    """The ``number`` of each sequence of the batch that this sequence was last in."""


@dataclass(frozen=True)
class LaneRun:
    """Neighbouring lanes of an arena, from ``first`` on, which one run of the session computes."""

    arena: Arena
    first: int
    sequences: tuple[CachedSequence, ...]


class LaneAllocator:
    """The arenas of one stage, and the sequence in each lane."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._arenas: list[Arena] = []
        self._occupied: dict[tuple[Arena, int], CachedSequence] = {}
        self._num_opened = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that sequences have touched."""
        return sum(self._shape.resident_bytes(cached.touched) for cached in self._occupied.values())

    def open(self, capacity: int) -> CachedSequence:
        """A lane for a new sequence of at most ``capacity`` positions.

        Raises:
            MemoryError: the system gives no more address space.
        """
        return self._occupy(FIRST_POSITIONS, capacity)

    def fork(self, source: CachedSequence, length: int, capacity: int) -> CachedSequence:
        """A lane for a new sequence of at most ``capacity`` positions, the first ``length`` copied from ``source``.

        Raises:
            MemoryError: the system gives no more address space.
        """
        cached = self._occupy(_stride(FIRST_POSITIONS, min(length + 1, capacity)), capacity)
        _copy(source, cached.arena, cached.lane, length)
        cached.length = cached.touched = length
        return cached

    def resize(self, cached: CachedSequence, capacity: int) -> None:
        """Set the capacity of a sequence, not below its length, and give memory beyond it back to the system."""
        cached.capacity = capacity
        if cached.touched > capacity:
            cached.arena.cut(cached.lane, capacity)
            cached.touched = capacity

    def free(self, cached: CachedSequence) -> None:
        """Give back the lane of a sequence, and the memory of the lane to the system."""
        del self._occupied[cached.arena, cached.lane]
        cached.arena.release(cached.lane)

    def reserve(self, cached: CachedSequence, positions: int, filled: int | None = None) -> None:
        """Make room for ``positions`` positions; a sequence that outgrows its lane moves to a longer lane.

        The move keeps the first ``filled`` positions, by default ``cached.length``.

        Raises:
            MemoryError: the system gives no more address space.
        """
        if positions > cached.arena.stride:
            arena = self._arena_with_free_lane(_stride(cached.arena.stride, positions))
            self._move(cached, arena, min(arena.free), cached.length if filled is None else filled)
        cached.touched = max(cached.touched, positions)

    def read(self, cached: CachedSequence, layers: LayerRange, start: int, stop: int) -> bytes:
        """Copy of the keys and values of ``layers`` at positions [start, stop), bytes in the order of ``kv_layout``."""
        memory, lane = cached.arena.memory, cached.lane
        return b"".join([memory[name][lane, :, start:stop].tobytes() for name in self._shape.names_of(layers)])

    def write(self, cached: CachedSequence, layers: LayerRange, start: int, stop: int, piece: KvChunk) -> None:
        """Write a ``piece`` from ``read`` of the same layers and positions, for which ``reserve`` has made room."""
        names = self._shape.names_of(layers)
        parts = np.frombuffer(piece, self._shape.dtype)
        parts = parts.reshape(len(names), self._shape.kv_heads, stop - start, self._shape.head_dim)
        for name, part in zip(names, parts, strict=True):
            cached.arena.memory[name][cached.lane, :, start:stop] = part

    def runs(self, batch: Sequence[CachedSequence]) -> list[LaneRun]:
        """The runs that compute one more position of each sequence of ``batch``, for which ``reserve`` made room.

        A batch that comes a second time is first gathered into neighbouring lanes, a few sequences per step; for a
        batch that comes only once, the copies would not pay.
        """
        together = frozenset(cached.number for cached in batch)
        runs = self._neighbours(batch)
        if len(runs) > 1 and all(cached.last_batch == together for cached in batch):
            with suppress(MemoryError):  # then the batch stays in several runs
                self._gather(batch)
            runs = self._neighbours(batch)
        for cached in batch:
            cached.last_batch = together
        return runs

    def _neighbours(self, batch: Sequence[CachedSequence]) -> list[LaneRun]:
        runs: list[list[CachedSequence]] = []
        for cached in sorted(batch, key=lambda cached: (self._arenas.index(cached.arena), cached.lane)):
            before = runs[-1][-1] if runs else None
            if before is not None and before.arena is cached.arena and before.lane + 1 == cached.lane:
                runs[-1].append(cached)
            else:
                runs.append([cached])
        return [LaneRun(run[0].arena, run[0].lane, tuple(run)) for run in runs]

    def _gather(self, batch: Sequence[CachedSequence]) -> None:
        """Move some sequences of ``batch``, so that all are in neighbouring lanes of the longest stride among them."""
        arena, lanes = self._window(batch, max(cached.arena.stride for cached in batch))
        vacant = [lane for lane in lanes if lane in arena.free]
        moved = 0
        for cached in batch:
            if cached.arena is arena and cached.lane in lanes:
                continue
            if not vacant or moved > _MOVED_BYTES:
                return
            self._move(cached, arena, vacant.pop(), cached.length)
            moved += cached.length * self._shape.counted_position_bytes

    def _window(self, batch: Sequence[CachedSequence], stride: int) -> tuple[Arena, range]:
        """An arena and neighbouring lanes to gather ``batch`` in, free of others, with most of ``batch`` there."""
        best: tuple[int, Arena, range] | None = None
        for arena in self._arenas:
            if arena.stride != stride:
                continue
            rows = min(len(batch), arena.lanes)
            mine = {cached.lane for cached in batch if cached.arena is arena}
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
        arena = self._arena_with_free_lane(stride)
        self._num_opened += 1
        cached = CachedSequence(self._num_opened, capacity, arena, arena.take())
        self._occupied[arena, cached.lane] = cached
        return cached

    def _arena_with_free_lane(self, stride: int) -> Arena:
        for arena in self._arenas:
            if arena.stride == stride and arena.free:
                return arena
        self._arenas.append(Arena(self._shape, stride))
        return self._arenas[-1]

    def _move(self, cached: CachedSequence, arena: Arena, lane: int, filled: int) -> None:
        _copy(cached, arena, lane, filled)
        self.free(cached)
        cached.arena, cached.lane, cached.touched = arena, arena.take(lane), filled + 1
        self._occupied[arena, lane] = cached


def _stride(stride: int, positions: int) -> int:
    """The shortest stride for ``positions``, in steps of the allocator from ``stride`` on."""
    while stride < positions:
        stride *= 4 if stride < _QUADRUPLED else 2
    return stride


def _copy(source: CachedSequence, arena: Arena, lane: int, length: int) -> None:
    for name, old in source.arena.memory.items():
        arena.memory[name][lane, :, :length] = old[source.lane, :, :length]
