"""Copies of keys and values that a stage keeps in memory for another stage, without computing with them.

Pure: no sockets, no clock. The copies of a sequence and layer range are a row of pieces without a gap, from position 0
on. A piece that begins where a kept piece begins replaces that piece and all later ones; a piece that begins elsewhere
is refused.

A sequence may go back to an earlier position, and a copy from before may still be kept or under way. The keeper is part
of the same ring, so it computes the frame that goes back too, and every piece tells the step after which it was taken:
a piece that an equal or later step of the sequence has overwritten is dropped. So what is kept is never out of date.

A stage that does not know what is kept of its sequence asks (``Kept``), and goes on from there: after another ring took
over, after messages were lost, and where a sequence began as a copy of another one, whose pieces then serve both.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from edgepp.errors import RemoteProtocolError
from edgepp.layer_range import LayerRange
from edgepp.stage_process.kv_pieces import CachePiece
from edgepp.stage_process.sequence_state import Key, keys_of, rekey
from edgepp.wire.messages.data import Kept

MAX_FRAMES = 1024
"""Frames of one sequence that are remembered until copies arrive that were taken after them."""
PIECE_OVERHEAD_BYTES = 256
"""Memory that a kept piece takes besides its bytes, at most."""


@dataclass
class _Kept:
    """Copies of one sequence and layer range."""

    layout: str
    starts: list[int] = field(default_factory=list)
    pieces: list[CachePiece] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """``KvPiece.step`` of each piece."""

    @property
    def length(self) -> int:
        """Positions from 0 on."""
        return self.pieces[-1].stop if self.pieces else 0

    @property
    def stops(self) -> list[int]:
        """Position at which each piece ends."""
        return [piece.stop for piece in self.pieces]

    def add(self, piece: CachePiece, step: int) -> None:
        """Add a piece that begins at ``length``."""
        self.starts.append(piece.start)
        self.pieces.append(piece)
        self.steps.append(step)


class _Overwrites:
    """Where the latest frames of one sequence began, from which on they overwrite: rising steps and positions."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._positions: list[int] = []
        self.latest = -1
        """Step of the latest frame."""

    def add(self, position: int, step: int) -> None:
        """Add a frame; frames that began at this position or later do not matter any more."""
        self.latest = step
        at = bisect_left(self._positions, position)
        del self._steps[at:], self._positions[at:]
        self._steps.append(step)
        self._positions.append(position)
        if len(self._steps) > MAX_FRAMES:  # as if the second oldest had begun where the oldest did
            del self._steps[0], self._positions[1]

    def overwrites(self, stop: int, step: int) -> bool:
        """Whether a frame overwrites positions before ``stop`` of a copy with ``KvPiece.step`` ``step``."""
        at = bisect_left(self._steps, step)
        return at < len(self._steps) and self._positions[at] < stop

    def forget_before(self, step: int) -> None:
        """Forget frames that cannot overwrite later copies, which have at least ``KvPiece.step`` ``step``."""
        at = bisect_left(self._steps, step)
        del self._steps[:at], self._positions[:at]


class KvCopies:
    """The copies of all rings. Implements ``SequenceState``; belongs to one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[Key, dict[LayerRange, _Kept]] = {}
        self._frames: dict[Key, _Overwrites] = {}
        self.nbytes = 0
        """Memory that the copies take."""

    def keep(self, key: Key, piece: CachePiece, layout: str, step: int) -> None:
        """Keep a piece, unless it is out of date by now; ``step`` is ``KvPiece.step``.

        Raises:
            RemoteProtocolError: The piece leaves a gap, cuts a kept piece, has another layout, or
                memory is short.
        """
        frames = self._frames.get(key, _Overwrites())
        if frames.overwrites(piece.stop, step):
            return
        ranges = self._kept.get(key, {})
        kept = ranges.get(piece.layers)
        if piece.start == 0:
            self._drop(key, [layers for layers in ranges if _overlap(layers, piece.layers)])
            kept = _Kept(layout)
        if kept is None or kept.layout != layout:
            raise RemoteProtocolError("a copy of keys and values whose beginning is not kept")
        at = bisect_left(kept.starts, piece.start)
        if piece.start != kept.length and (at == len(kept.starts) or kept.starts[at] != piece.start):
            raise RemoteProtocolError("a copy of keys and values that leaves a gap or cuts a kept one")
        self._cut(kept, at)
        size = len(piece.data) + PIECE_OVERHEAD_BYTES
        if self.nbytes + size > self._max_bytes:
            raise RemoteProtocolError(f"copies of keys and values would take more than {self._max_bytes} bytes")
        kept.add(piece, step)
        self._kept.setdefault(key, {})[piece.layers] = kept
        self.nbytes += size
        frames.forget_before(step)

    def left(self, asked: Kept) -> int:
        """Drop what is out of date by ``Kept``; the positions from 0 on that are left of all the layers asked for."""
        key = asked.epoch, asked.sequence
        if asked.source:
            self._take_over((asked.epoch, asked.source), key, asked.length, asked.step, sys.maxsize)
        rows = self._rows(key, asked)
        length = asked.length
        while rows and any(row.length > length for row in rows):
            for row in rows:
                self._cut(row, bisect_right(row.stops, length))
            length = min(row.length for row in rows)
        return min((row.length for row in rows), default=0)

    def pieces(self, key: Key, layers: LayerRange, start: int, stop: int, layout: str) -> list[CachePiece] | None:
        """Pieces that hold ``layers`` at positions ``[start, stop)`` and some around; None where not all is kept.

        Ordered by positions for each layer range. All layers of one layout take the same number of bytes.
        """
        found: list[CachePiece] = []
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

    def computed(self, key: Key, position: int, step: int) -> None:
        """Drop what a frame with the number ``step`` overwrites, which begins at ``position`` of the sequence."""
        self._frames.setdefault(key, _Overwrites()).add(position, step)
        for kept in self._kept.get(key, {}).values():
            at = len(kept.pieces)
            while at and kept.pieces[at - 1].stop > position and kept.steps[at - 1] <= step:
                at -= 1
            self._cut(kept, at)

    def fork(self, source: Key, key: Key, length: int) -> None:
        """Keep for a copy what is kept of ``source``, which may be freed before the stage of these layers asks."""
        if key not in self._kept:
            self._take_over(source, key, length, 0, self._frames.get(source, _Overwrites()).latest + 1)

    def free(self, key: Key) -> None:
        """Forget a sequence."""
        self._drop(key, list(self._kept.get(key, ())))
        self._frames.pop(key, None)

    def forget(self, epoch: int) -> None:
        """Forget all sequences of an epoch."""
        for key in {*keys_of(self._kept, epoch), *keys_of(self._frames, epoch)}:
            self.free(key)

    def inherit(self, old: int, new: int) -> None:
        """Move all sequences of the epoch ``old`` to the epoch ``new``."""
        for key in keys_of(self._kept, old):
            for kept in self._kept[key].values():
                kept.steps = [0] * len(kept.pieces)
        rekey(self._kept, old, new)
        for key in keys_of(self._frames, old):
            del self._frames[key]

    def _rows(self, key: Key, asked: Kept) -> list[_Kept]:
        """What is kept of the layers and layout asked for, in rows that lack no layer; else nothing."""
        rows, reached = [], asked.start_layer
        for layers, kept in sorted(self._kept.get(key, {}).items()):
            if layers.start == reached and layers.stop <= asked.stop_layer and kept.layout == asked.layout:
                rows.append(kept)
                reached = layers.stop
        return rows if reached == asked.stop_layer else []

    def _take_over(self, source: Key, key: Key, length: int, step: int, newest: int) -> None:
        """Let pieces of ``source`` up to ``length`` serve ``key`` too, behind those that it has.

        None serves that was taken after the step ``newest`` - 1, or that a frame of ``key`` from the step ``step`` on
        has overwritten; ``step`` is their ``KvPiece.step``.
        """
        frames = self._frames.get(key, _Overwrites())
        for layers, kept in self._kept.get(source, {}).items():
            row = self._kept.setdefault(key, {}).setdefault(layers, _Kept(kept.layout))
            for piece, taken in zip(kept.pieces, kept.steps, strict=True):
                size = len(piece.data) + PIECE_OVERHEAD_BYTES
                if piece.stop > length or taken > newest or self.nbytes + size > self._max_bytes:
                    break
                if piece.start == row.length and row.layout == kept.layout and not frames.overwrites(piece.stop, step):
                    row.add(piece, step)
                    self.nbytes += size

    def _cut(self, kept: _Kept, at: int) -> None:
        """Drop the pieces from index ``at`` on."""
        self.nbytes -= sum(len(piece.data) + PIECE_OVERHEAD_BYTES for piece in kept.pieces[at:])
        del kept.starts[at:], kept.pieces[at:], kept.steps[at:]

    def _drop(self, key: Key, ranges: list[LayerRange]) -> None:
        for layers in ranges:
            self._cut(self._kept[key].pop(layers), 0)
        if key in self._kept and not self._kept[key]:
            del self._kept[key]


def _overlap(one: LayerRange, other: LayerRange) -> bool:
    return one.start < other.stop and other.start < one.stop


def _part(piece: CachePiece, layers: LayerRange) -> CachePiece:
    """The part of a piece that is of ``layers``."""
    start, stop = max(piece.layers.start, layers.start), min(piece.layers.stop, layers.stop)
    if (start, stop) == (piece.layers.start, piece.layers.stop):
        return piece
    each = len(piece.data) // len(piece.layers)
    first = start - piece.layers.start
    data = piece.data[first * each : (first + stop - start) * each]
    return CachePiece(LayerRange(start, stop), piece.start, piece.stop, data)
