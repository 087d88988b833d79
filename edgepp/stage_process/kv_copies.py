"""Copies of keys and values that a stage keeps in memory for another stage, without computing with them.

Pure: no sockets, no clock. The copies of a sequence and layer range are a row of pieces without a gap, from position 0
on. A piece that begins where a kept piece begins replaces that piece and all later ones; a piece that begins elsewhere
is refused, so that what is kept is always what the other stage held.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from edgepp.errors import RemoteProtocolError
from edgepp.layers import LayerRange
from edgepp.stage_process.companion import Key, keys_of, rekey
from edgepp.stage_process.kv_pieces import Piece

PIECE_OVERHEAD_BYTES = 256
"""Memory that a kept piece takes besides its bytes, at most."""


@dataclass
class _Kept:
    """Copies of one sequence and layer range."""

    layout: str
    is_inherited: bool = False
    """Whether the pieces are of a ring that was replaced; its stage may have gone back to earlier positions since."""
    starts: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions from 0 on."""
        return self.pieces[-1].stop if self.pieces else 0


class KvCopies:
    """The copies of all rings. Implements ``Companion``; belongs to one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[Key, dict[LayerRange, _Kept]] = {}
        self.nbytes = 0
        """Memory that the copies take."""

    def keep(self, key: Key, piece: Piece, layout: str) -> None:
        """Keep a piece.

        Raises:
            RemoteProtocolError: The piece would leave a gap, cuts a kept piece, has another layout, or memory is short.
        """
        ranges = self._kept.get(key, {})
        kept = ranges.get(piece.layers)
        if piece.start == 0:
            self._drop(key, [layers for layers in ranges if _overlap(layers, piece.layers)])
            kept = _Kept(layout)
        if kept is None or kept.is_inherited or kept.layout != layout:
            raise RemoteProtocolError("a copy of keys and values whose beginning is not kept")
        at = bisect_left(kept.starts, piece.start)
        if piece.start != kept.length and (at == len(kept.starts) or kept.starts[at] != piece.start):
            raise RemoteProtocolError("a copy of keys and values that leaves a gap or cuts a kept one")
        self._cut(kept, at)
        size = len(piece.data) + PIECE_OVERHEAD_BYTES
        if self.nbytes + size > self._max_bytes:
            raise RemoteProtocolError(f"copies of keys and values would take more than {self._max_bytes} bytes")
        kept.starts.append(piece.start)
        kept.pieces.append(piece)
        self._kept.setdefault(key, {})[piece.layers] = kept
        self.nbytes += size

    def pieces(self, key: Key, layers: LayerRange, start: int, stop: int, layout: str) -> list[Piece] | None:
        """Pieces that hold ``layers`` at positions ``[start, stop)`` and some around; None where not all is kept.

        Ordered by positions for each layer range. All layers of one layout take the same number of bytes.
        """
        found: list[Piece] = []
        reached = layers.start
        for kept_layers, kept in sorted(self._kept.get(key, {}).items()):
            if not _overlap(kept_layers, layers):
                continue
            if kept_layers.start > reached or kept.length < stop or kept.layout != layout:
                return None
            reached = max(reached, kept_layers.stop)
            found += [_part(one, layers) for one in kept.pieces if one.stop > start and one.start < stop]
        return found if reached >= layers.stop else None

    def lengths(self, epoch: int) -> dict[LayerRange, dict[int, int]]:
        """Kept positions per layer range and sequence of an epoch."""
        found: dict[LayerRange, dict[int, int]] = {}
        for key in keys_of(self._kept, epoch):
            for layers, kept in self._kept[key].items():
                if kept.length:
                    found.setdefault(layers, {})[key[1]] = kept.length
        return found

    def computed(self, key: Key) -> None:
        """Forget copies of a sequence that are of a replaced ring: the sequence has gone on in the new one."""
        ranges = self._kept.get(key)
        if ranges:
            self._drop(key, [layers for layers, kept in ranges.items() if kept.is_inherited])

    def fork(self, source: Key, key: Key, length: int) -> None:
        """Nothing is kept for the new sequence yet: its stage sends all positions."""

    def free(self, key: Key) -> None:
        """Forget a sequence."""
        self._drop(key, list(self._kept.get(key, ())))

    def forget(self, epoch: int) -> None:
        """Forget all sequences of an epoch."""
        for key in keys_of(self._kept, epoch):
            self.free(key)

    def inherit(self, old: int, new: int) -> None:
        """Move all sequences of the epoch ``old`` to the epoch ``new``."""
        for key in keys_of(self._kept, old):
            for kept in self._kept[key].values():
                kept.is_inherited = True
        rekey(self._kept, old, new)

    def _cut(self, kept: _Kept, at: int) -> None:
        """Drop the pieces from index ``at`` on."""
        self.nbytes -= sum(len(piece.data) + PIECE_OVERHEAD_BYTES for piece in kept.pieces[at:])
        del kept.starts[at:], kept.pieces[at:]

    def _drop(self, key: Key, ranges: list[LayerRange]) -> None:
        for layers in ranges:
            self._cut(self._kept[key].pop(layers), 0)
        if key in self._kept and not self._kept[key]:
            del self._kept[key]


def _overlap(one: LayerRange, other: LayerRange) -> bool:
    return one.start < other.stop and other.start < one.stop


def _part(piece: Piece, layers: LayerRange) -> Piece:
    """The part of a piece that is of ``layers``."""
    start, stop = max(piece.layers.start, layers.start), min(piece.layers.stop, layers.stop)
    if (start, stop) == (piece.layers.start, piece.layers.stop):
        return piece
    each = len(piece.data) // len(piece.layers)
    first = start - piece.layers.start
    data = piece.data[first * each : (first + stop - start) * each]
    return Piece(LayerRange(start, stop), piece.start, piece.stop, data)
