"""Room for the KV caches of many sequences: lanes side by side, so that neighbours are one batch without a copy.

A lane is address space. It takes memory page by page as positions are written, and gives all of it back when its
sequence leaves; so a lane's length costs nothing, and a sequence need not be copied each time it doubles.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgepp.backend.onnx.architecture import Architecture
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Array

LANES = 32
"""Lanes of an arena, and the most rows that one run takes."""

_ADDRESSES = 16 << 30  # bytes of address space an arena may take, lest many long lanes exhaust a process's
_DROP = getattr(mmap, "MADV_DONTNEED" if hasattr(mmap, "MADV_NOHUGEPAGE") else "MADV_FREE", None)  # Linux, or others
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANON | getattr(mmap, "MAP_NORESERVE", 0)


@dataclass(frozen=True)
class CacheShape:
    """What the caches of one stage have in common."""

    layers: LayerRange
    kv_heads: int
    head_dim: int
    dtype: type[np.generic] = np.float32

    @classmethod
    def of(cls, architecture: Architecture, layers: LayerRange, kv_bits: int | None) -> CacheShape:
        """The shape that ``layers`` of the architecture need for float32 keys and values, or such of 8 bits."""
        dtype: type[np.generic] = np.float32 if kv_bits is None else np.int8
        return cls(layers, architecture.kv_heads, architecture.head_dim, dtype)

    @cached_property
    def names(self) -> Sequence[str]:
        """Each layer's keys and values, as the graph calls them."""
        return [f"{layer}.{part}" for layer in range(self.layers.start, self.layers.stop) for part in ("key", "value")]

    @property
    def position_bytes(self) -> int:
        """Bytes of one position's keys and values over all layers."""
        return len(self.layers) * 2 * self.kv_heads * self.head_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of one head's key, or value, at one position."""
        return self.head_dim * np.dtype(self.dtype).itemsize

    def resident_bytes(self, positions: int) -> int:
        """Bytes of the pages that ``positions`` of one sequence touch; each head's lie apart."""
        pages = -(-positions * self.head_bytes // mmap.PAGESIZE)
        return len(self.layers) * 2 * self.kv_heads * pages * mmap.PAGESIZE


class Arena:
    """Lanes of ``stride`` positions each; ``memory`` holds an array (lanes, kv_heads, stride, head_dim) a name."""

    def __init__(self, shape: CacheShape, stride: int) -> None:
        """Take address space, for fewer lanes where the system is sparing of it.

        Raises:
            MemoryError: not even one lane is to be had.
        """
        self.stride = stride
        self._head_bytes = stride * shape.head_bytes
        self._part_bytes = shape.kv_heads * self._head_bytes
        self.memory: dict[str, Array] = {}
        lane_bytes = shape.position_bytes * stride
        lanes = max(1, min(LANES, _ADDRESSES // lane_bytes))
        while not self._map(shape, lanes):
            if lanes == 1:
                raise MemoryError
            lanes //= 2
        self.free = set(range(lanes))
        self.lanes = lanes

    def _map(self, shape: CacheShape, lanes: int) -> bool:
        rows = (lanes, shape.kv_heads, self.stride, shape.head_dim)
        try:
            self._pages = {name: mmap.mmap(-1, lanes * self._part_bytes, flags=_FLAGS) for name in shape.names}
        except OSError:
            self._pages = {}
            return False
        for name, pages in self._pages.items():
            if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page a head would be many times what is written
                pages.madvise(mmap.MADV_NOHUGEPAGE)
            self.memory[name] = np.frombuffer(pages, shape.dtype).reshape(rows)
        return True

    def take(self, lane: int | None = None) -> int:
        """Occupy ``lane``, or the first that is free."""
        chosen = min(self.free) if lane is None else lane
        self.free.remove(chosen)
        return chosen

    def release(self, lane: int) -> None:
        """Give a lane's memory back to the system, as far as it is whole pages."""
        self.free.add(lane)
        self._drop(lane * self._part_bytes, (lane + 1) * self._part_bytes)

    def cut(self, lane: int, length: int) -> None:
        """Give the memory of a lane's positions from ``length`` on back to the system, as far as it is whole pages."""
        kept = length * self._head_bytes // self.stride
        for start in range(lane * self._part_bytes, (lane + 1) * self._part_bytes, self._head_bytes):
            self._drop(start + kept, start + self._head_bytes)

    def _drop(self, start: int, stop: int) -> None:
        start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if _DROP is not None and start < stop:
            for pages in self._pages.values():
                pages.madvise(_DROP, start, stop - start)
