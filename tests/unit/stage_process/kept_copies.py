"""One sequence of one byte per position and layer, and a link to the keeper of its copies."""

from __future__ import annotations

from typing import Any

from edgepp.errors import RemoteProtocolError
from edgepp.layer_range import LayerRange
from edgepp.stage_process.kv_copies import KvCopies
from edgepp.stage_process.kv_pieces import CachePiece, data_of
from edgepp.stage_process.paced_link import PacedLink
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.data import Batch, Echo, Kept, KvPiece

LAYERS = LayerRange(2, 4)
KEY = (1, 5)


class Holder:
    """Runner and model of one sequence: each position of each layer has one byte."""

    def __init__(self) -> None:
        self.layers, self.kv_layout, self.model = LAYERS, "form", self
        self.written: list[int] = []

    def length(self, key: Any) -> int:
        return len(self.written)

    def cache_id(self, key: Any) -> int:
        return 0

    def export_kv(self, _: int, layers: LayerRange, start: int, stop: int) -> list[bytes]:
        return [bytes(self.written[start:stop]) for _ in range(len(layers))]


class KeeperLink:
    """The link to a keeper, with the keeper at its end; also the ``BulkLink`` around it."""

    def __init__(self) -> None:
        self.copies = KvCopies(1 << 20)
        self.pace: PacedLink | None = PacedLink(self, 30)  # type: ignore[arg-type]
        self.queue: list[list[bytes]] = []
        self.echoes: list[bytes] = []
        self.takes, self.refused = True, 0
        self.pieces: list[tuple[int, int, int]] = []
        """Sequence, start and stop of each piece that arrived."""

    def reconnect(self) -> None:
        """Lose all that is under way, with the connection."""
        self.pace = PacedLink(self, 30)  # type: ignore[arg-type]
        self.queue.clear()
        self.echoes.clear()

    def open(self) -> PacedLink | None:
        return self.pace

    def send(self, parts: Any, _: float = 0.0) -> bool:
        if self.takes:
            self.queue.append([bytes(part) for part in parts])
        return self.takes

    def receive(self) -> list[memoryview] | None:
        return [memoryview(self.echoes.pop(0))] if self.echoes else None

    def deliver(self) -> None:
        for header, *frames in self.queue:
            message = decode(header)
            if isinstance(message, Echo):
                self.echoes.append(encode(message._replace(reply=True)))
                continue
            if isinstance(message, Kept):
                length = self.copies.left(message)
                self.echoes.append(encode(message._replace(length=length, reply=True)))
                continue
            assert isinstance(message, KvPiece)
            self.pieces.append((message.sequence, message.start, message.stop))
            layers = LayerRange(message.start_layer, message.stop_layer)
            piece = CachePiece(layers, message.start, message.stop, bytes(data_of(message, [memoryview(frames[0])])))
            try:
                self.copies.keep((message.epoch, message.sequence), piece, message.layout, message.step)
            except RemoteProtocolError:
                self.refused += 1
        self.queue.clear()

    def kept(self) -> bytes:
        """The bytes of the first layer that are kept."""
        length = self.copies.lengths(1).get(LAYERS, {}).get(KEY[1], 0)
        pieces = self.copies.pieces(KEY, LAYERS, 0, length, "form") if length else []
        return b"".join(piece.data[: piece.stop - piece.start] for piece in pieces or ())


def frame_at(position: int, step: int, sequence: int = KEY[1]) -> Batch:
    return Batch(1, step, (sequence,), (position,), 8, "float32", "none", ())
