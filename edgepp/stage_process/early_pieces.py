"""Pieces of keys and values that came before the coordinator's ``Expect``, which travels on another connection.

A sender has so much memory and no more, so that no member can take the memory that belongs to another one. Pure.
"""

from __future__ import annotations

from edgepp.errors import RemoteProtocolError, StageFault
from edgepp.stage_process.companion import Key
from edgepp.wire.messages import KvPiece

MAX_BYTES_PER_SENDER = 4 << 20
MAX_SENDERS = 16
MAX_LOST = 1024
"""Sequences per sender of which pieces were dropped."""
_OVERHEAD_BYTES = 512

Early = tuple[KvPiece, bytes]


class _OfSender:
    """The early pieces of one sender."""

    def __init__(self) -> None:
        self.pieces: dict[Key, list[Early]] = {}
        self.lost: dict[Key, None] = {}
        """Sequences of which pieces were dropped."""
        self.nbytes = 0


class EarlyPieces:
    """Early pieces by sender and sequence."""

    def __init__(self) -> None:
        self._senders: dict[str, _OfSender] = {}

    def add(self, sender: str, piece: KvPiece, data: bytes) -> None:
        """Keep a piece until its sequence is expected.

        Raises:
            RemoteProtocolError: There is no room for the piece.
        """
        if sender not in self._senders and len(self._senders) >= MAX_SENDERS:
            raise RemoteProtocolError("keys and values that this stage does not expect, from too many senders")
        of, key = self._senders.setdefault(sender, _OfSender()), (piece.epoch, piece.sequence)
        size = len(data) + _OVERHEAD_BYTES
        if of.nbytes + size > MAX_BYTES_PER_SENDER:
            if len(of.lost) < MAX_LOST:
                of.lost[key] = None
            raise RemoteProtocolError("too many keys and values that this stage does not expect")
        of.nbytes += size
        of.pieces.setdefault(key, []).append((piece, data))

    def take(self, sender: str, key: Key) -> list[Early]:
        """Take away the pieces of a sequence, oldest first.

        Raises:
            StageFault: Some were dropped.
        """
        of = self._senders.get(sender)
        if of is None:
            return []
        was_lost, taken = key in of.lost, of.pieces.get(key, [])
        self._forget(sender, of, key)
        if was_lost:
            raise StageFault("keys and values came before they were expected, and were too many to keep")
        return taken

    def free(self, key: Key) -> None:
        """Forget a sequence."""
        for sender, of in list(self._senders.items()):
            if key in of.pieces or key in of.lost:
                self._forget(sender, of, key)

    def forget(self, epoch: int) -> None:
        """Forget all sequences of an epoch."""
        for key in {key for of in self._senders.values() for key in (*of.pieces, *of.lost) if key[0] == epoch}:
            self.free(key)

    def _forget(self, sender: str, of: _OfSender, key: Key) -> None:
        of.nbytes -= sum(len(data) + _OVERHEAD_BYTES for _, data in of.pieces.pop(key, ()))
        of.lost.pop(key, None)
        if not of.pieces and not of.lost:
            del self._senders[sender]
