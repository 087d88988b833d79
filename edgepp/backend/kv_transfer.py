"""Keys and values of a sequence as bytes, between stages: their layout, and the checks that both backends share.

A piece has the keys and values of some layers at some positions. Its bytes are, layer by layer, the arrays of the keys
and then those of the values: one array each, or codes, scales and biases where quantised. Each array is (heads,
positions, width), C-contiguous and little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.backend.base import KvChunk, SequenceFault
from edgepp.errors import StageFault
from edgepp.layers import LayerRange

_VERSION = 1


@dataclass(frozen=True)
class KvLayout:
    """How a stage stores keys and values; pieces of another layout cannot be imported."""

    name: str
    """Version, dtype or bits, heads and width, such as ``1 float32 3x64``; empty where nothing can be exported."""
    layer_bytes: int
    """Bytes of the keys and values of one layer at one position."""

    @classmethod
    def of(cls, numbers: str, keys: tuple[int, int], values: tuple[int, int], layer_bytes: int) -> KvLayout:
        """The layout of ``keys`` and ``values`` of so many (heads, width), stored as ``numbers``, such as float32."""
        sizes = " ".join(f"{heads}x{width}" for heads, width in ((keys,) if keys == values else (keys, values)))
        return cls(f"{_VERSION} {numbers} {sizes}", layer_bytes)


NO_LAYOUT = KvLayout("", 0)
"""The layout of stages whose caches cannot be exported."""


class KvImports:
    """How far imports have filled the layers of each sequence of a stage, beyond the positions that it holds."""

    def __init__(self, own: LayerRange, layout: KvLayout) -> None:
        """``own`` are the layers of the stage."""
        self._own = own
        self.layout = layout
        self._filled: dict[int, list[int]] = {}

    def check_export(self, sequence: int, held: int, layers: LayerRange, start: int, stop: int) -> None:
        """Check the arguments of ``StageModel.export_kv`` for a sequence that holds ``held`` positions.

        Raises:
            SequenceFault: the sequence holds fewer than ``stop`` positions.
            StageFault: the caches cannot be exported, or the stage lacks the layers, or there are no such positions.
        """
        self._check_piece(layers, start, stop)
        if stop > held:
            raise SequenceFault(f"a sequence of {held} positions has no keys and values up to {stop}", (sequence,))

    def begin(self, sequence: int, held: int, capacity: int, layers: LayerRange, span: range, num_bytes: int) -> None:
        """Check the arguments of ``StageModel.import_kv``: ``num_bytes`` for the positions ``span`` of ``layers``.

        Raises:
            StageFault: the caches cannot be imported, the stage lacks the layers, the positions are beyond the
                ``capacity`` or leave a gap behind those that a layer has, or the number of bytes is another.
        """
        self._check_piece(layers, span.start, span.stop)
        expected = len(layers) * len(span) * self.layout.layer_bytes
        if num_bytes != expected:
            raise StageFault(
                f"{num_bytes} bytes are not {len(span)} positions of keys and values in layers {layers}: {expected}"
            )
        if span.stop > capacity:
            raise StageFault(f"keys and values up to position {span.stop} do not fit a sequence opened for {capacity}")
        first = min(max(held, filled) for filled in self._of(sequence, layers))
        if span.start > first:
            raise StageFault(f"positions {first} to {span.start - 1} in layers {layers} were not imported")

    def done(self, sequence: int, layers: LayerRange, stop: int) -> None:
        """Note that ``layers`` of a sequence are now filled up to position ``stop``."""
        filled = self._filled.setdefault(sequence, [0] * len(self._own))
        for n in range(layers.start - self._own.start, layers.stop - self._own.start):
            filled[n] = max(filled[n], stop)

    def check_length(self, sequence: int, held: int, length: int) -> None:
        """Check that every layer of a sequence that holds ``held`` positions is filled up to ``length``.

        Raises:
            StageFault: a layer is not.
        """
        least = max(held, min(self._of(sequence, self._own)))
        if not 0 <= length <= least:
            raise StageFault(f"layers {self._own} have keys and values of {least} positions, not of {length}")

    def farthest(self, sequence: int) -> int:
        """Positions of the layer that imports have filled farthest, 0 if none was imported."""
        return max(self._of(sequence, self._own))

    def forget(self, *sequences: int) -> None:
        """Forget imports of sequences that compute, change or end: what ``set_length`` has not added is lost."""
        if self._filled:
            for sequence in sequences:
                self._filled.pop(sequence, None)

    def _of(self, sequence: int, layers: LayerRange) -> Sequence[int]:
        filled = self._filled.get(sequence)
        return (0,) if filled is None else filled[layers.start - self._own.start : layers.stop - self._own.start]

    def _check_piece(self, layers: LayerRange, start: int, stop: int) -> None:
        if not self.layout.name:
            raise StageFault(f"the caches of layers {self._own} do not hold keys and values of all positions alone")
        if not self._own.start <= layers.start < layers.stop <= self._own.stop:
            raise StageFault(f"a stage of layers {self._own} has no keys and values of layers {layers}")
        if not 0 <= start < stop:
            raise StageFault(f"{start} to {stop} is not a range of positions")


def joined(data: Sequence[KvChunk]) -> KvChunk:
    """The chunks as one; a single chunk is not copied."""
    return data[0] if len(data) == 1 else b"".join(data)
