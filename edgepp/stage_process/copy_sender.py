"""Copies of the keys and values of one ring, sent to the stage that keeps them, after a step and never before it.

While a sequence decodes, ``batch`` positions go together, since a message costs as much as a position; whoever restores
the sequence computes the last few again. The sender remembers where each piece began that the keeper has. Where the
keeper is slow or away, nothing is sent, and later pieces hold more positions: what the keeper has is always a prefix.
When a sequence goes back into the middle of a piece, that piece is sent again from its beginning.

What the keeper has already is not sent again. Of a sequence that another ring began, or that began as a copy, and of
all sequences after messages were lost, the sender does not know it, and asks (``Kept``) before it goes on.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_right
from dataclasses import dataclass, field

from edgepp.errors import EdgeppError, RemoteProtocolError, StageFault
from edgepp.stage_process.bulk_link import BulkLink
from edgepp.stage_process.frames import Frame, spans_of
from edgepp.stage_process.kv_export import cut_of, exported
from edgepp.stage_process.kv_pieces import CachePiece, Cut
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.paced_link import PacedLink
from edgepp.stage_process.sequence_state import Key
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.message_codec import encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.data import REPLAYED, Kept

log = logging.getLogger("edgepp.stage")


@dataclass
class _Sent:
    """State of one sequence at the keeper of the copies."""

    unchanged: int = sys.maxsize
    """Positions of which any copy that the keeper may have is right; all later ones were computed again since."""
    is_known: bool = True
    """Whether ``end`` and ``starts`` are what the keeper has."""
    source: int = 0
    """A sequence whose copies are right too; 0 for none."""
    end: int = 0
    starts: list[int] = field(default_factory=list)
    step: int = 0
    """``KvPiece.step`` of the next piece."""

    def go_back(self, position: int) -> None:
        """Note that ``position`` and all later ones are computed again; forget the piece that holds it."""
        if self.is_known and position >= self.end:
            return
        self.unchanged = min(self.unchanged, position)
        at = bisect_right(self.starts, position) - 1
        if self.is_known and at >= 0:
            self.end = self.starts[at]
            del self.starts[at:]
        else:
            self.is_known = False

    def add(self, stop: int) -> None:
        """Note a piece from the end to ``stop``."""
        self.starts.append(self.end)
        self.end = stop

    def know(self, length: int) -> None:
        """Note that the keeper has ``length`` positions, and none that are out of date."""
        self.is_known, self.source, self.unchanged = True, 0, sys.maxsize
        self.end, self.starts = length, []


class CopySender:
    """Sends the copies of one ring. Implements ``SequenceState``; belongs to the compute thread."""

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
        """Sequences of which the keeper lacks positions, longest waiting first; none whose reply is awaited."""
        self._asked: dict[Key, int] = {}
        """The longest ``Kept.length`` of the questions whose reply is awaited."""

    def __bool__(self) -> bool:
        """Whether there is something to send, or a reply to await."""
        return bool(self._behind or self._asked)

    def computed(self, frame: Frame) -> None:
        """Send the keys and values of a frame that was computed, if the keeper lacks enough positions by now.

        A frame that rebuilds what was lost changes nothing that the keeper may have; copies go on with the next frame.
        """
        if frame.step == REPLAYED:
            return
        due: list[tuple[Key, int]] = []
        for sequence, position, rows in spans_of(frame):
            key = (self._epoch, sequence)
            sent = self._sent.setdefault(key, _Sent(position or sys.maxsize, is_known=position == 0))
            self._go_back(key, sent, position)
            sent.step = frame.step + 1
            if not sent.is_known or position + rows - sent.end >= self.batch:
                due.append((key, position + rows))
        pace = self._open() if due else None
        for key, held in due:  # a question that is repeated shows whether the first one was lost
            was_sent = pace is not None and key not in self._behind and self._serve(pace, key, held)
            if key not in self._asked and (not was_sent or held - self._sent[key].end >= self.batch):
                self._behind[key] = None

    def move(self) -> bool:
        """Send one piece that the keeper lacks, or a question, where there is room; whether something was sent."""
        if not self or (pace := self._open()) is None or not self._behind:
            return False
        key = next(iter(self._behind))
        del self._behind[key]
        held, sent = self._runner.length(key), self._sent.get(key)
        if held is None or sent is None or (sent.is_known and sent.end >= held):
            return False
        moved = self._serve(pace, key, held)
        if key not in self._asked and (not sent.is_known or sent.end < held):
            self._behind[key] = None
        return moved

    def fork(self, source: Key, key: Key, length: int) -> None:
        """Let the keeper take over what it has of ``source``, for the first ``length`` positions of a copy."""
        if key[0] != self._epoch:
            return
        origin = self._sent.get(source)
        if origin is not None:
            length = min(length, origin.end if origin.is_known else origin.unchanged)
        self._sent[key] = _Sent(length, is_known=False, source=source[1])

    def free(self, key: Key) -> None:
        """Forget a sequence."""
        for states in (self._sent, self._behind, self._asked):
            states.pop(key, None)

    def forget(self, epoch: int) -> None:
        """Forget the ring's sequences."""
        if epoch == self._epoch:
            self._sent.clear()
            self._behind.clear()
            self._asked.clear()

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

    def _go_back(self, key: Key, sent: _Sent, position: int) -> None:
        """Note that a frame begins at ``position``, also for copies of the sequence whose question waits."""
        if sent.is_known and position >= sent.end:
            return
        sent.go_back(position)
        for other in self._sent.values():
            if other.source == key[1]:
                other.unchanged = min(other.unchanged, position)

    def _open(self) -> PacedLink | None:
        """The link to the keeper; where it may have lost messages, the keeper is asked again what it has."""
        pace = self._link.open()
        if pace is None:
            return None
        try:
            has_lost = pace.read_echoes(self._answered)
        except RemoteProtocolError as error:
            self._log(error)
            self._link.drop()
            has_lost = True
        if has_lost:
            for key, sent in self._sent.items():
                sent.is_known = False
                self._behind[key] = None
        if has_lost or pace.is_idle:  # the keeper did not reply: the next frame asks again
            self._asked.clear()
        return self._link.pace

    def _answered(self, message: Message) -> bool:
        """Take the keeper's reply, and go on from what it has; whether that was due."""
        if not isinstance(message, Kept) or not message.reply:
            return False
        key = message.epoch, message.sequence
        asked, sent = self._asked.pop(key, None), self._sent.get(key)
        if asked is not None and sent is not None:
            if message.length > asked:
                return False
            if message.length <= sent.unchanged:  # else a frame has gone back since, and it is asked again
                sent.know(message.length)
            self._behind[key] = None
        return True

    def _serve(self, pace: PacedLink, key: Key, held: int) -> bool:
        """Send one piece of at most the positions up to ``held``, or a question; False where there is no room."""
        sent = self._sent[key]
        if not pace.has_room(self._max_bytes if sent.is_known and held > sent.end + 1 else 0):
            return False
        try:
            return self._send(pace, key, sent, held) if sent.is_known else self._ask(pace, key, sent, held)
        except StageFault as fault:
            self._log(fault)
            return False

    def _send(self, pace: PacedLink, key: Key, sent: _Sent, held: int) -> bool:
        pieces = self._export(key, sent.end, held)
        layout = self._runner.model.kv_layout
        if not all(pace.link.send(piece.message(*key, "copy", layout, sent.step)) for piece in pieces):
            return False
        pace.mark(sum(len(piece.data) for piece in pieces))
        sent.add(pieces[0].stop)
        return True

    def _ask(self, pace: PacedLink, key: Key, sent: _Sent, held: int) -> bool:
        """Ask what the keeper has; the echo that follows the question shows whether a reply can still come."""
        model, length = self._runner.model, min(sent.unchanged, held)
        start, stop = model.layers.start, model.layers.stop
        question = Kept(*key, sent.source, start, stop, length, model.kv_layout, sent.step, reply=False)
        if not pace.link.send([encode(question)]):
            return False
        pace.mark(0)
        self._asked[key] = max(length, self._asked.get(key, 0))
        return True

    def _export(self, key: Key, start: int, held: int) -> list[CachePiece]:
        """Pieces of all layers, of as many positions from ``start`` on as fit."""
        model, cache_id = self._runner.model, self._runner.cache_id(key)
        if cache_id is None:
            raise StageFault("the sequence was freed")
        self._cut = self._cut or cut_of(model, cache_id, model.layers, self._max_bytes)
        return exported(model, cache_id, self._cut, start, held)

    def _log(self, error: EdgeppError) -> None:
        if self._log_sampler.should_log("copies", type(error).__name__):
            log.warning("copies of keys and values were not sent: %s", error)
