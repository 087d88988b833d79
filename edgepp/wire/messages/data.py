"""Messages on the data socket of a stage: hidden states, keys and values, and the measuring of links."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import (
    Candidates,
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
    RankTimes,
    ResultForm,
    ResultWidth,
    Rows,
    Stage,
    TraceTimes,
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
    result: ResultForm = "hidden"
    """Form of the rows that are returned."""
    candidates: Candidates = 0
    """Candidates per row, for that form; 0 otherwise."""
    trace: TraceTimes = ()
    ranks: RankTimes = b""
    request: Label = ""
    """Name of the request in logs, in the frame that opens a sequence; empty in other frames."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if not 0 < self.rows >= self.wanted_rows:
            return f"wants {self.wanted_rows} rows of {self.rows}"
        if not self.wanted_rows and self.result != "hidden":
            return f"wants no rows, in form {self.result}"
        return result_problem(self.result, self.candidates)


class Hidden(NamedTuple):
    """Last stage to coordinator: the result (rows, width) of the last ``rows`` rows of the ``Forward`` ``step``.

    In the form that the ``Forward`` asked for; logits and candidates are float32 with codec ``none``.
    """

    epoch: Id
    sequence: Id
    step: Id
    rows: Rows
    width: ResultWidth
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    serial: Id = 0
    """Number of the frame on its link within the epoch."""
    checksum: Checksum = 0
    """CRC-32 of the tensor frames."""
    trace: TraceTimes = ()
    ranks: RankTimes = b""


class Batch(NamedTuple):
    """Coordinator to stage 0, stage to next stage, and last stage to coordinator: a decode step of B sequences.

    Hidden states (B, width); row i is for position ``positions[i]`` of ``sequences[i]``. What the last stage returns is
    in the form ``result``, as with ``Hidden``.
    """

    epoch: Id
    step: Id
    sequences: PerSequence
    positions: PerSequence
    width: ResultWidth
    dtype: Dtype
    codec: Codec
    compute_us: PerStageMicroseconds
    serial: Id = 0
    """Number of the frame on its link within the epoch."""
    checksum: Checksum = 0
    """CRC-32 of the tensor frames."""
    trace: TraceTimes = ()
    ranks: RankTimes = b""
    result: ResultForm = "hidden"
    candidates: Candidates = 0

    @property
    def rows(self) -> int:
        """Number of sequences, B."""
        return len(self.sequences)

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        matched = len(self.positions) == len(self.sequences) == len(set(self.sequences))
        if not matched:
            return "has sequences and positions that do not match"
        return result_problem(self.result, self.candidates)


def result_problem(result: ResultForm, candidates: int) -> str:
    """End of the sentence "the message …" where ``candidates`` do not fit the form; empty if they do."""
    return "" if (candidates > 0) == (result == "candidates") else f"wants {candidates} candidates in form {result}"


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


class Kept(NamedTuple):
    """Stage to the stage that keeps its copies, which returns it with ``reply`` set: what is kept of a sequence.

    The keeper drops copies of the layers ``[start_layer, stop_layer)`` beyond the first ``length`` positions, which are
    out of date, and replies with the ``length`` that it has left: at most what was asked.
    """

    epoch: Id
    sequence: Id
    source: Id
    """A sequence whose copies serve where nothing is kept of ``sequence``, which began as a copy of it; 0 for none."""
    start_layer: Layer
    stop_layer: Layer
    length: Count
    layout: Label
    """Form of the bytes (``StageModel.kv_layout``)."""
    step: Id
    """1 + ``step`` of the latest frame of the sequence that the asking stage has computed."""
    reply: bool

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if self.start_layer < self.stop_layer else "has an empty range of layers"


DataMessage: TypeAlias = Echo | Forward | Hidden | Batch | KvPiece | Kept
