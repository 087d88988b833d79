"""Arenas: memory for the KV caches of many sequences, in lanes that follow each other in one array.

Neighbouring lanes can be computed as one batch without a copy.

A lane is address space: the system provides memory page by page as positions are written, and gets it back when the
sequence is freed. So an unused part of a long lane costs nothing, and a growing sequence is rarely copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgepp.backend.kv_layout import KvLayout
from edgepp.backend.onnx.architecture import Architecture
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array

LANES = 32
"""Lanes per arena, and so the maximum number of rows per run."""

_MAX_ARENA_BYTES = 16 << 30  # of address space, which many long lanes would exhaust otherwise
_DROP = getattr(mmap, "MADV_DONTNEED" if hasattr(mmap, "MADV_NOHUGEPAGE") else "MADV_FREE", None)  # the first on Linux
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANON | getattr(mmap, "MAP_NORESERVE", 0)


@dataclass(frozen=True)
class CacheShape:
    """Layers, sizes and dtype of the caches of one stage."""

    layers: LayerRange
    kv_heads: int
    head_dim: int
    dtype: type[np.generic] = np.float32
    all_kv_heads: int = 0
    """Heads of all ranks of the stage together; 0 for a stage of one process."""

    @classmethod
    def of(
        cls, architecture: Architecture, layers: LayerRange, kv_bits: int | None, all_kv_heads: int = 0
    ) -> CacheShape:
        """The shape for ``layers`` of the architecture; keys and values are float32, or int8 where ``kv_bits`` is 8."""
        dtype: type[np.generic] = np.float32 if kv_bits is None else np.int8
        return cls(layers, architecture.kv_heads, architecture.head_dim, dtype, all_kv_heads)

    @cached_property
    def names(self) -> Sequence[str]:
        """Names of each layer's keys and values in the graph."""
        return [f"{layer}.{part}" for layer in range(self.layers.start, self.layers.stop) for part in ("key", "value")]

    def names_of(self, layers: LayerRange) -> Sequence[str]:
        """Names of the keys and values of ``layers`` in the graph."""
        return self.names[2 * (layers.start - self.layers.start) : 2 * (layers.stop - self.layers.start)]

    @cached_property
    def layout(self) -> KvLayout:
        """Layout of exported keys and values, without the scales of int8, which follow from the weights."""
        sizes = self.kv_heads, self.head_dim
        return KvLayout(np.dtype(self.dtype).name, sizes, sizes, (self.head_bytes, self.head_bytes))

    @property
    def position_bytes(self) -> int:
        """Bytes of the keys and values of one position in all layers."""
        return len(self.layers) * 2 * self.kv_heads * self.head_bytes

    @property
    def counted_position_bytes(self) -> int:
        """Bytes of one position in all layers and ranks, by which ranks choose lanes, so that all choose the same."""
        return self.position_bytes // self.kv_heads * (self.all_kv_heads or self.kv_heads)

    @property
    def head_bytes(self) -> int:
        """Bytes of the key (or value) of one head at one position."""
        return self.head_dim * np.dtype(self.dtype).itemsize

    def resident_bytes(self, positions: int) -> int:
        """Bytes of the memory pages that ``positions`` positions of one sequence touch; each head has its own pages."""
        pages = -(-positions * self.head_bytes // mmap.PAGESIZE)
        return len(self.layers) * 2 * self.kv_heads * pages * mmap.PAGESIZE


class Arena:
    """Lanes of ``stride`` positions each; ``memory`` holds one array (lanes, kv_heads, stride, head_dim) per name."""

    def __init__(self, shape: CacheShape, stride: int) -> None:
        """Reserve address space for ``LANES`` lanes, or for fewer where the system refuses so much.

        Raises:
            MemoryError: the system refuses even one lane.
        """
        self.stride = stride
        self._head_bytes = stride * shape.head_bytes
        self._part_bytes = shape.kv_heads * self._head_bytes
        self.memory: dict[str, Array] = {}
        lane_bytes = shape.counted_position_bytes * stride
        lanes = max(1, min(LANES, _MAX_ARENA_BYTES // lane_bytes))
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
            if hasattr(mmap, "MADV_NOHUGEPAGE"):  # one huge page per head would be many times the bytes written
                pages.madvise(mmap.MADV_NOHUGEPAGE)
            self.memory[name] = np.frombuffer(pages, shape.dtype).reshape(rows)
        return True

    def take(self, lane: int | None = None) -> int:
        """Occupy ``lane``, or the first free lane; returns its number."""
        chosen = min(self.free) if lane is None else lane
        self.free.remove(chosen)
        return chosen

    def release(self, lane: int) -> None:
        """Free ``lane`` and give its whole memory pages back to the system."""
        self.free.add(lane)
        self._drop(lane * self._part_bytes, (lane + 1) * self._part_bytes)

    def cut(self, lane: int, length: int) -> None:
        """Give the whole memory pages of ``lane`` behind its first ``length`` positions back to the system."""
        kept = length * self._head_bytes // self.stride
        for start in range(lane * self._part_bytes, (lane + 1) * self._part_bytes, self._head_bytes):
            self._drop(start + kept, start + self._head_bytes)

    def _drop(self, start: int, stop: int) -> None:
        start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if _DROP is not None and start < stop:
            for pages in self._pages.values():
                pages.madvise(_DROP, start, stop - start)
