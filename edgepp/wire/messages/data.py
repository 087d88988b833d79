"""Messages on the data socket of a stage: hidden states, keys and values, and the measuring of links."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import (
    Checksum,
    Codec,
    Count,
    Dtype,
    Id,
    Label,
    Layer,
    PerSequence,
    PerStageMicroseconds,
    PiecePurpose,
    Rows,
    Stage,
    Width,
)

REPLAYED = (1 << 63) - 1
"""``Forward.step`` of a frame that a ``Replay`` made: no step of the coordinator waits for the result."""


class Echo(NamedTuple):
    """Sender of hidden states, keys or values to a stage, which returns the frames in order with ``reply`` set.

    Measures a link, and shows the sender that what was sent before has arrived.
    """

    nonce: Id
    reply: bool


class Forward(NamedTuple):
    """Coordinator to stage 0, and stage to next stage: hidden states (rows, width) of one sequence.

    The rows are for positions ``[position, position + rows)``.
    """

    epoch: Id
    sequence: Id
    step: Id
    """Running number of the coordinator's steps, repeated by ``Hidden``."""
    position: Count
    capacity: Count
    """Highest number of positions that the sequence may reach."""
    source: Id
    """For a sequence that the stage does not know: the sequence of which the first ``position`` positions are copied; 0
    for none."""
    wanted_rows: Rows
    """Number of last rows that the coordinator wants returned: 1 to sample from, 0 for a chunk in mid-prompt, which an
    empty ``Hidden`` acknowledges."""
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    until: Stage = 0
    """Number of the last stage that computes the frame; in normal frames the last stage of the ring."""
    serial: Id = 0
    """Number of the frame on its link within the epoch."""
    checksum: Checksum = 0
    """CRC-32 of the tensor frames."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if 0 < self.rows >= self.wanted_rows else f"wants {self.wanted_rows} rows of {self.rows}"


class Hidden(NamedTuple):
    """Last stage to coordinator: the last ``rows`` hidden states (rows, width) of the ``Forward`` numbered ``step``."""

    epoch: Id
    sequence: Id
    step: Id
    rows: Rows
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    serial: Id = 0
    """Number of the frame on its link within the epoch."""
    checksum: Checksum = 0
    """CRC-32 of the tensor frames."""


class Batch(NamedTuple):
    """Coordinator to stage 0, stage to next stage, and last stage to coordinator: a decode step of B sequences.

    Hidden states (B, width); row i is for position ``positions[i]`` of ``sequences[i]``.
    """

    epoch: Id
    step: Id
    sequences: PerSequence
    positions: PerSequence
    width: Width
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    serial: Id = 0
    """Number of the frame on its link within the epoch."""
    checksum: Checksum = 0
    """CRC-32 of the tensor frames."""

    @property
    def rows(self) -> int:
        """Number of sequences, B."""
        return len(self.sequences)

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        matched = len(self.positions) == len(self.sequences) == len(set(self.sequences))
        return "" if matched else "has sequences and positions that do not match"


class KvPiece(NamedTuple):
    """Stage to stage: keys and values of the layers ``[start_layer, stop_layer)`` and positions ``[start, stop)``.

    One frame of raw bytes in the form ``layout``: layer by layer, for each layer keys then values.
    """

    epoch: Id
    sequence: Id
    purpose: PiecePurpose
    """``copy``: to keep for the sender; ``restore``: to compute with, as ``Expect`` announced."""
    start_layer: Layer
    stop_layer: Layer
    start: Count
    stop: Count
    layout: Label
    """Form of the bytes (``StageModel.kv_layout``)."""
    checksum: Checksum
    """CRC-32 of the bytes."""
    step: Id = 0
    """1 + ``step`` of the latest frame of the sequence when a copy was taken; 0 for none, and to restore."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        filled = self.start_layer < self.stop_layer and self.start < self.stop
        return "" if filled else "has an empty range of layers or positions"


DataMessage: TypeAlias = Echo | Forward | Hidden | Batch | KvPiece
