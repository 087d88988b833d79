"""Pieces in which keys and values travel: how they are cut, and what is checked before they are used. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepp.errors import RemoteProtocolError
from edgepp.layer_range import LayerRange
from edgepp.wire import codec
from edgepp.wire.field_types import PiecePurpose
from edgepp.wire.message_codec import encode
from edgepp.wire.messages import max_data_frame_bytes
from edgepp.wire.messages.data import KvPiece

MAX_PIECE_BYTES = 1 << 19
"""Longest piece: it is written into the caches between two frames."""
MAX_PIECE_POSITIONS = 256


def max_piece_bytes(width: int) -> int:
    """Longest piece that a stage accepts whose hidden states have ``width`` values."""
    return min(MAX_PIECE_BYTES, max_data_frame_bytes(width))


@dataclass(frozen=True)
class Cut:
    """Number of layers and positions of the pieces of a layer range."""

    layers: LayerRange
    layers_each: int
    positions_each: int

    @classmethod
    def of(cls, layers: LayerRange, layer_bytes: int, max_bytes: int) -> Cut:
        """The cut into pieces of at most ``max_bytes``, where a position of one layer takes ``layer_bytes``."""
        layers_each = max(1, min(len(layers), max_bytes // layer_bytes))
        positions_each = max(1, min(MAX_PIECE_POSITIONS, max_bytes // (layer_bytes * layers_each)))
        return cls(layers, layers_each, positions_each)

    def groups(self) -> Iterator[LayerRange]:
        """Layer ranges of the pieces of the same positions."""
        for start in range(self.layers.start, self.layers.stop, self.layers_each):
            yield LayerRange(start, min(self.layers.stop, start + self.layers_each))


@dataclass(frozen=True)
class CachePiece:
    """Keys and values of the layers ``layers`` and the positions ``[start, stop)``, as a KV cache exports them."""

    layers: LayerRange
    start: int
    stop: int
    data: bytes

    def message(
        self, epoch: int, sequence: int, purpose: PiecePurpose, layout: str, step: int = 0
    ) -> list[bytes | memoryview]:
        """Frames of the ``KvPiece`` that carries the piece."""
        header = KvPiece(
            epoch=epoch,
            sequence=sequence,
            purpose=purpose,
            start_layer=self.layers.start,
            stop_layer=self.layers.stop,
            start=self.start,
            stop=self.stop,
            layout=layout,
            checksum=codec.checksum([self.data]),
            step=step,
        )
        return [encode(header), self.data]


def data_of(piece: KvPiece, frames: Sequence[memoryview]) -> memoryview:
    """The bytes of a received piece.

    Raises:
        RemoteProtocolError: There is not exactly one frame, or the bytes do not match the checksum.
    """
    if len(frames) != 1:
        raise RemoteProtocolError(f"a piece of keys and values in {len(frames)} frames instead of 1")
    if codec.checksum(frames) != piece.checksum:
        raise RemoteProtocolError("a piece of keys and values does not match its checksum")
    return frames[0]
