"""Keys and values on their way into the caches of this stage, from stages that the coordinator named."""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.errors import RemoteProtocolError, StageFault
from edgepp.layer_range import LayerRange
from edgepp.stage_process.early_pieces import EarlyPieces
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.sequence_state import Key, keys_of
from edgepp.wire.messages.data import KvPiece
from edgepp.wire.messages.recovery import Expect


@dataclass
class _Arrival:
    """One sequence that is being restored."""

    cache_id: int
    length: int
    senders: set[str]
    """Keys of the stages that may send."""
    filled: dict[int, int]
    """Positions that each layer has, from 0 on."""


class KvArrivals:
    """The sequences that are being restored. Implements ``SequenceState``; belongs to one thread."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._arrivals: dict[Key, _Arrival] = {}
        self._early = EarlyPieces()

    def __bool__(self) -> bool:
        return bool(self._arrivals)

    def expect(self, message: Expect) -> bool:
        """Take the pieces of a sequence from now on, and those that came before; whether the sequence is complete.

        Raises:
            StageFault: The sequence does not fit, was freed, or memory is short; or an early piece was dropped or does
                not fit.
        """
        key, model = (message.epoch, message.sequence), self._runner.model
        if not model.kv_layout:
            raise StageFault("the caches of this stage cannot be restored from keys and values")
        arrival = self._arrivals.get(key)
        if arrival is not None and arrival.length == message.length:
            arrival.senders.add(message.key)
            return self._take_early(message.key, key)
        cache_id = self._runner.reserve(key, message.capacity, message.length)
        held = model.length(cache_id)
        if held >= message.length:
            return True
        filled = dict.fromkeys(range(model.layers.start, model.layers.stop), held)
        self._arrivals[key] = _Arrival(cache_id, message.length, {message.key}, filled)
        return self._take_early(message.key, key)

    def accepts(self, sender: str, piece: KvPiece) -> bool:
        """Whether pieces of the sequence are expected from the stage with the key ``sender``."""
        arrival = self._arrivals.get((piece.epoch, piece.sequence))
        return arrival is not None and sender in arrival.senders

    def keep_early(self, sender: str, piece: KvPiece, data: memoryview) -> None:
        """Keep a piece for an ``Expect`` that may be under way.

        Raises:
            RemoteProtocolError: There is no room for the piece.
        """
        self._early.add(sender, piece, bytes(data))

    def _take_early(self, sender: str, key: Key) -> bool:
        """Take early pieces of an expected sequence; whether these complete the sequence."""
        return any(self.take(*early) is not None for early in self._early.take(sender, key))

    def take(self, piece: KvPiece, data: bytes | memoryview) -> int | None:
        """Write an accepted piece into the caches; the length of the sequence where that completes it.

        Raises:
            StageFault: The piece is of another layout or other layers, leaves a gap, or does not fit.
        """
        key, model = (piece.epoch, piece.sequence), self._runner.model
        arrival = self._arrivals.get(key)
        if arrival is None:
            raise RemoteProtocolError("keys and values of a sequence that is not expected")
        if piece.layout != model.kv_layout:
            raise StageFault(f"keys and values of the form '{piece.layout}', and this stage has '{model.kv_layout}'")
        layers = range(piece.start_layer, piece.stop_layer)
        if any(piece.start > arrival.filled.get(layer, -1) for layer in layers):
            raise StageFault(f"keys and values of layers {layers.start} to {layers.stop - 1} are missing or not wanted")
        model.import_kv(arrival.cache_id, LayerRange(layers.start, layers.stop), piece.start, piece.stop, [bytes(data)])
        for layer in layers:
            arrival.filled[layer] = max(arrival.filled[layer], piece.stop)
        if min(arrival.filled.values()) < arrival.length:
            return None
        model.set_length(arrival.cache_id, arrival.length)
        del self._arrivals[key]
        return arrival.length

    def fork(self, source: Key, key: Key, length: int) -> None:
        """Nothing is expected for a copy."""

    def free(self, key: Key) -> None:
        """Expect nothing more for a sequence."""
        self._arrivals.pop(key, None)
        self._early.free(key)

    def forget(self, epoch: int) -> None:
        """Expect nothing more for an epoch."""
        for key in keys_of(self._arrivals, epoch):
            self.free(key)
        self._early.forget(epoch)

    def inherit(self, old: int, new: int) -> None:  # noqa: ARG002 - the new ring begins its own restorations
        """Expect nothing more for the epoch ``old``."""
        self.forget(old)
