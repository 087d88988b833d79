"""Pieces of keys and values that came before the coordinator's ``Expect``, which travels on another connection.

The memory for the pieces of each sender is bounded, so that no member can take the memory of another one. Pure.
"""

from __future__ import annotations

from edgepp.errors import RemoteProtocolError, StageFault
from edgepp.stage_process.sequence_state import Key
from edgepp.wire.messages.data import KvPiece

MAX_BYTES_PER_SENDER = 4 << 20
"""Memory for the early pieces of one sender."""
MAX_SENDERS = 16
MAX_LOST = 1024
"""Sequences per sender of which pieces were dropped."""
_OVERHEAD_BYTES = 512
"""Memory that a piece takes besides its bytes, at most."""

Early = tuple[KvPiece, bytes]
"""A piece and its bytes."""


class _SenderPieces:
    """The early pieces of one sender."""

    def __init__(self) -> None:
        self.pieces: dict[Key, list[Early]] = {}
        self.lost: dict[Key, None] = {}
        """Sequences of which pieces were dropped."""
        self.nbytes = 0


class EarlyPieces:
    """Early pieces by sender and sequence."""

    def __init__(self) -> None:
        self._senders: dict[str, _SenderPieces] = {}

    def add(self, sender: str, piece: KvPiece, data: bytes) -> None:
        """Keep a piece until its sequence is expected.

        Raises:
            RemoteProtocolError: There is no room for the piece.
        """
        if sender not in self._senders and len(self._senders) >= MAX_SENDERS:
            raise RemoteProtocolError("keys and values that this stage does not expect, from too many senders")
        early, key = self._senders.setdefault(sender, _SenderPieces()), (piece.epoch, piece.sequence)
        size = len(data) + _OVERHEAD_BYTES
        if early.nbytes + size > MAX_BYTES_PER_SENDER:
            if len(early.lost) < MAX_LOST:
                early.lost[key] = None
            raise RemoteProtocolError("too many keys and values that this stage does not expect")
        early.nbytes += size
        early.pieces.setdefault(key, []).append((piece, data))

    def take(self, sender: str, key: Key) -> list[Early]:
        """Take away the pieces of a sequence, oldest first.

        Raises:
            StageFault: Some were dropped.
        """
        early = self._senders.get(sender)
        if early is None:
            return []
        was_lost, taken = key in early.lost, early.pieces.get(key, [])
        self._forget(sender, early, key)
        if was_lost:
            raise StageFault("keys and values came before they were expected, and were too many to keep")
        return taken

    def free(self, key: Key) -> None:
        """Forget a sequence."""
        for sender, early in list(self._senders.items()):
            if key in early.pieces or key in early.lost:
                self._forget(sender, early, key)

    def forget(self, epoch: int) -> None:
        """Forget all sequences of an epoch."""
        for key in {key for early in self._senders.values() for key in (*early.pieces, *early.lost) if key[0] == epoch}:
            self.free(key)

    def _forget(self, sender: str, early: _SenderPieces, key: Key) -> None:
        early.nbytes -= sum(len(data) + _OVERHEAD_BYTES for _, data in early.pieces.pop(key, ()))
        early.lost.pop(key, None)
        if not early.pieces and not early.lost:
            del self._senders[sender]
