"""Checks of keys and values that stages send each other as bytes, for both backends; ``kv_layout`` has the layout."""

from __future__ import annotations

from collections.abc import Sequence

from edgepp.backend.base import KvChunk, SequenceFault
from edgepp.backend.kv_layout import KvLayout
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange


class KvImports:
    """Positions up to which imports have filled each layer of each sequence, beyond those that the sequence holds."""

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
        check_piece(self._own, self.layout, layers, start, stop)
        if stop > held:
            raise SequenceFault(f"a sequence of {held} positions has no keys and values up to {stop}", (sequence,))

    def begin(self, sequence: int, held: int, capacity: int, layers: LayerRange, span: range, num_bytes: int) -> None:
        """Check the arguments of ``StageModel.import_kv``: ``num_bytes`` for the positions ``span`` of ``layers``.

        Raises:
            StageFault: the caches cannot be imported, the stage lacks the layers, the positions are beyond the
                ``capacity`` or leave a gap behind the positions of a layer, or ``num_bytes`` is wrong.
        """
        check_piece(self._own, self.layout, layers, span.start, span.stop)
        check_size(self.layout, layers, span, num_bytes)
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
            StageFault: a layer has fewer positions.
        """
        least = max(held, min(self._of(sequence, self._own)))
        if not 0 <= length <= least:
            raise StageFault(f"layers {self._own} have keys and values of {least} positions, not of {length}")

    def farthest(self, sequence: int) -> int:
        """Number of positions of the layer that imports have filled farthest; 0 without imports."""
        return max(self._of(sequence, self._own))

    def forget(self, *sequences: int) -> None:
        """Forget the imports of ``sequences`` that compute, change or end: positions beyond their length are lost."""
        if self._filled:
            for sequence in sequences:
                self._filled.pop(sequence, None)

    def _of(self, sequence: int, layers: LayerRange) -> Sequence[int]:
        filled = self._filled.get(sequence)
        return (0,) if filled is None else filled[layers.start - self._own.start : layers.stop - self._own.start]


def check_piece(own: LayerRange, layout: KvLayout, layers: LayerRange, start: int, stop: int) -> None:
    """Check that a stage of the layers ``own`` can export or import ``layers`` at positions [start, stop).

    Raises:
        StageFault: the stage has no layout or lacks the layers, or there are no such positions.
    """
    if not layout.name:
        raise StageFault(f"the caches of layers {own} do not hold keys and values of all positions alone")
    if not own.start <= layers.start < layers.stop <= own.stop:
        raise StageFault(f"a stage of layers {own} has no keys and values of layers {layers}")
    if not 0 <= start < stop:
        raise StageFault(f"{start} to {stop} is not a range of positions")


def check_size(layout: KvLayout, layers: LayerRange, span: range, num_bytes: int) -> None:
    """Check that the positions ``span`` of ``layers`` take ``num_bytes`` bytes.

    Raises:
        StageFault: the positions take another number of bytes.
    """
    expected = len(layers) * len(span) * layout.layer_bytes
    if num_bytes != expected:
        raise StageFault(
            f"{num_bytes} bytes are not {len(span)} positions of keys and values in layers {layers}: {expected}"
        )


def joined(data: Sequence[KvChunk]) -> KvChunk:
    """The chunks of ``data`` joined to one; a single chunk is not copied."""
    return data[0] if len(data) == 1 else b"".join(data)
