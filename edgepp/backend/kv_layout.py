"""Layout of the keys and values of a stage, and conversion between the layouts of a stage and of its ranks.

A piece has the keys and values of some layers at some positions. Its bytes are, layer by layer, the arrays of the keys
and then those of the values: one array each, or codes, scales and biases where quantised. Each array is (heads,
positions, width), C-contiguous and little-endian. A rank of a tensor-parallel stage has some of the heads, so that the
array of the whole stage is the arrays of the ranks, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

_VERSION = 1


@dataclass(frozen=True)
class KvLayout:
    """Layout of the keys and values of a stage; pieces of another layout cannot be imported."""

    numbers: str
    """Dtype or bits, such as ``float32``; empty where nothing can be exported."""
    keys: tuple[int, int]
    """Number of heads of the keys, and width of a head."""
    values: tuple[int, int]
    """Number of heads of the values, and width of a head."""
    head_bytes: tuple[int, ...] = ()
    """Bytes per head and position of each array of a layer: arrays of the keys, then as many of the values."""

    @cached_property
    def name(self) -> str:
        """Version, dtype or bits, heads and width, such as ``1 float32 3x64``; empty where nothing can be exported."""
        if not self.numbers:
            return ""
        parts = (self.keys,) if self.keys == self.values else (self.keys, self.values)
        return f"{_VERSION} {self.numbers} {' '.join(f'{heads}x{width}' for heads, width in parts)}"

    @property
    def layer_bytes(self) -> int:
        """Bytes of the keys and values of one layer at one position."""
        half = len(self.head_bytes) // 2
        return self.keys[0] * sum(self.head_bytes[:half]) + self.values[0] * sum(self.head_bytes[half:])

    def of_heads(self, heads: int) -> KvLayout:
        """The same layout with ``heads`` heads of keys, and as many of values."""
        return replace(self, keys=(heads, self.keys[1]), values=(heads, self.values[1]))


NO_LAYOUT = KvLayout("", (0, 0), (0, 0))
"""The layout of stages whose caches cannot be exported."""


def join_heads(
    layout: KvLayout, heads: Sequence[int], parts: Sequence[bytes | memoryview], layers: int, positions: int
) -> bytes:
    """The piece of ``layers`` layers and ``positions`` positions made of ``parts``, which are in rank order.

    Part i has ``heads[i]`` heads; ``layout`` is the layout of any rank.
    """
    views = [memoryview(part) for part in parts]
    return b"".join([views[rank][span] for rank, span in _head_spans(layout, heads, layers, positions)])


def split_heads(
    layout: KvLayout, heads: Sequence[int], piece: bytes | memoryview, layers: int, positions: int
) -> list[bytes]:
    """The parts, in rank order, of a ``piece`` of ``layers`` layers and ``positions`` positions.

    Part i has ``heads[i]`` heads; ``layout`` is the layout of any rank. The inverse of ``join_heads``.
    """
    view, taken = memoryview(piece), 0
    parts: list[list[memoryview]] = [[] for _ in heads]
    for rank, span in _head_spans(layout, heads, layers, positions):
        num_bytes = span.stop - span.start
        parts[rank].append(view[taken : taken + num_bytes])
        taken += num_bytes
    return [b"".join(part) for part in parts]


def _head_spans(layout: KvLayout, heads: Sequence[int], layers: int, positions: int) -> Iterator[tuple[int, slice]]:
    """Rank, and range of bytes in the part of the rank, of each run of bytes of a whole piece, in order."""
    taken = [0] * len(heads)
    for _ in range(layers):
        for head_bytes in layout.head_bytes:
            for rank, count in enumerate(heads):
                start = taken[rank]
                taken[rank] = start + count * positions * head_bytes
                yield rank, slice(start, taken[rank])
