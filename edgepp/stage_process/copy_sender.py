"""Copies of the keys and values of one ring, sent to the stage that keeps them, after a step and never before it.

While a sequence decodes, ``batch`` positions go together, since a message costs as much as a position; whoever restores
the sequence computes the last few again. The sender remembers where each piece began that the keeper has. Where the
keeper is slow or away, nothing is sent, and later pieces hold more positions: what the keeper has is always a prefix.
When a sequence goes back into the middle of a piece, that piece is sent again from its beginning.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from dataclasses import dataclass, field

from edgepp.errors import EdgeppError, RemoteProtocolError, StageFault
from edgepp.stage_process.bulk_link import BulkLink
from edgepp.stage_process.companion import Key
from edgepp.stage_process.kv_export import cut_of, exported
from edgepp.stage_process.kv_pieces import Cut, Piece
from edgepp.stage_process.model_runner import Frame, ModelRunner, spans_of
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.messages.data import REPLAYED

log = logging.getLogger("edgepp.stage")


@dataclass
class _Sent:
    """What the keeper has of one sequence."""

    end: int = 0
    starts: list[int] = field(default_factory=list)
    step: int = 0
    """``KvPiece.step`` of the next piece."""

    def go_back(self, position: int) -> None:
        """Forget the piece that holds ``position``, and all later ones."""
        if position < self.end:
            at = bisect_right(self.starts, position) - 1
            self.end = self.starts[at]
            del self.starts[at:]

    def add(self, stop: int) -> None:
        """Note a piece from the end to ``stop``."""
        self.starts.append(self.end)
        self.end = stop


class CopySender:
    """Sends the copies of one ring. Implements ``Companion``; belongs to the compute thread."""

    batch = 8
    """Positions of a decoding sequence that are sent together."""

    def __init__(self, runner: ModelRunner, epoch: int, link: BulkLink, max_bytes: int) -> None:
        """``max_bytes`` bounds the bytes of a piece."""
        self._runner = runner
        self._epoch = epoch
        self._link = link
        self._max_bytes = max_bytes
        self._cut: Cut | None = None
        self._log_sampler = LogSampler()
        self._sent: dict[Key, _Sent] = {}
        self._behind: dict[Key, None] = {}
        """Sequences of which the keeper lacks positions, longest waiting first."""

    def __bool__(self) -> bool:
        """Whether there is something to send."""
        return bool(self._behind)

    def computed(self, frame: Frame) -> None:
        """Send the keys and values of a frame that was computed, if the keeper lacks enough positions by now."""
        due: list[tuple[Key, int]] = []
        for sequence, position, rows in spans_of(frame):
            key = (self._epoch, sequence)
            sent = self._sent.setdefault(key, _Sent())
            sent.go_back(position)
            sent.step = 0 if frame.step == REPLAYED else frame.step + 1
            if position + rows - sent.end >= self.batch:
                due.append((key, position + rows))
        can_send = bool(due) and self._open()
        for key, held in due:
            sent = self._sent[key]  # which opening may have reset
            was_sent = can_send and key not in self._behind and self._send(key, sent, held)
            if not was_sent or held - sent.end >= self.batch:
                self._behind[key] = None

    def move(self) -> bool:
        """Send one piece that the keeper lacks, where there is room; whether one was sent."""
        if not self._behind or not self._open():
            return False
        key = next(iter(self._behind))
        del self._behind[key]
        held, sent = self._runner.length(key), self._sent.get(key)
        if held is None or sent is None or sent.end >= held:
            return False
        moved = self._send(key, sent, held)
        if sent.end < held:
            self._behind[key] = None
        return moved

    def fork(self, source: Key, key: Key, length: int) -> None:
        """The keeper has nothing of a copy; its positions are sent after its first frame."""

    def free(self, key: Key) -> None:
        """Forget a sequence."""
        self._sent.pop(key, None)
        self._behind.pop(key, None)

    def forget(self, epoch: int) -> None:
        """Forget the ring's sequences."""
        if epoch == self._epoch:
            self._sent.clear()
            self._behind.clear()

    def inherit(self, old: int, new: int) -> None:  # noqa: ARG002 - the new ring has a sender of its own
        """Forget the ring's sequences."""
        self.forget(old)

    @property
    def is_connected(self) -> bool:
        """Whether there is a link."""
        return self._link.pace is not None

    def close(self) -> None:
        """Close the link."""
        self._link.close()

    def _open(self) -> bool:
        """Whether the keeper is connected; where it may have lost pieces, all sequences are sent again."""
        pace = self._link.open()
        if pace is None:
            return False
        try:
            has_lost = pace.read_echoes()
        except RemoteProtocolError as error:
            self._log(error)
            self._link.drop()
            has_lost = True
        if has_lost:
            for key in self._sent:
                self._sent[key] = _Sent(step=self._sent[key].step)
                self._behind[key] = None
        return self._link.pace is not None

    def _send(self, key: Key, sent: _Sent, held: int) -> bool:
        """Send one piece of at most the positions up to ``held``; False where there is no room for it."""
        pace = self._link.pace
        if pace is None or not pace.has_room(self._max_bytes if held > sent.end + 1 else 0):
            return False
        try:
            pieces = self._export(key, sent.end, held)
        except StageFault as fault:
            self._log(fault)
            return False
        layout = self._runner.model.kv_layout
        if not all(pace.link.send(piece.message(*key, "copy", layout, sent.step)) for piece in pieces):
            return False
        pace.mark(sum(len(piece.data) for piece in pieces))
        sent.add(pieces[0].stop)
        return True

    def _export(self, key: Key, start: int, held: int) -> list[Piece]:
        """Pieces of all layers, of as many positions from ``start`` on as fit."""
        model, cache_id = self._runner.model, self._runner.cache_id(key)
        if cache_id is None:
            raise StageFault("the sequence was freed")
        self._cut = self._cut or cut_of(model, cache_id, model.layers, self._max_bytes)
        return exported(model, cache_id, self._cut, start, held)

    def _log(self, error: EdgeppError) -> None:
        if self._log_sampler.should_log("copies", type(error).__name__):
            log.warning("copies of keys and values were not sent: %s", error)
