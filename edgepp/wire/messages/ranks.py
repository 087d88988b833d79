"""Messages between the ranks of a tensor-parallel stage: what all ranks do next, and the partial sums that they add."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import (
    CacheOperation,
    Candidates,
    Count,
    Dtype,
    Id,
    KvTransfer,
    Label,
    Layer,
    PerSequence,
    Rank,
    RankTimes,
    ResultForm,
    ResultWidth,
    Rows,
    Text,
    WeightDigests,
    Width,
)
from edgepp.wire.messages.data import result_problem


class RankJoined(NamedTuple):
    """Any rank to any other, first on its connection: the sender is ``rank`` of the stage that has the id ``group``."""

    group: Id
    rank: Rank
    folder: Label = ""
    """Folder of the sender's model."""
    weights: WeightDigests = ()
    """Digests of its weights, with which those of all ranks must agree; empty where nothing is computed."""


class CacheOrder(NamedTuple):
    """Rank 0 to all others: change the KV cache of ``sequence``, as the method ``operation`` of ``StageModel`` does."""

    operation: CacheOperation
    sequence: Id
    source: Id
    """Sequence to copy from, for ``fork``; 0 otherwise."""
    length: Count
    """Positions to keep, copy or hold, for ``truncate``, ``fork`` and ``set_length``; 0 otherwise."""
    capacity: Count
    """Positions that the sequence may reach, for ``open``, ``fork`` and ``resize``; 0 otherwise."""


class CacheDone(NamedTuple):
    """Rank to rank 0, in reply to ``open``, ``fork``, ``resize`` or ``set_length``: the order was followed, or not."""

    reason: Text
    """Why the order, or an import for the sequence before, was not followed; empty where all were."""


class KvOrder(NamedTuple):
    """Rank 0 to all others: export or import keys and values of their heads, as ``StageModel`` does.

    They are those of a sequence in the layers ``[start_layer, stop_layer)`` at positions ``[start, stop)``. To import,
    one frame with the bytes for the receiver's heads follows; the reply to ``set_length`` tells whether that failed.
    """

    operation: KvTransfer
    sequence: Id
    start_layer: Layer
    stop_layer: Layer
    start: Count
    stop: Count

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        filled = self.start_layer < self.stop_layer and self.start < self.stop
        return "" if filled else "has an empty range of layers or positions"


class KvExported(NamedTuple):
    """Rank to rank 0, in reply to ``KvOrder``: one frame with the bytes of the rank's heads follows, or why not."""

    reason: Text
    """Empty where the frame follows."""


class StepOrder(NamedTuple):
    """Rank 0 to all others: compute a step. One frame follows: hidden states (rows, width) in ``dtype``.

    With one sequence, the rows are its next positions; with several, row i is the next position of ``sequences[i]``.
    """

    step: Id
    """Number of the step, one more than that of the step before."""
    sequences: PerSequence
    positions: PerSequence
    """Positions that each sequence holds before the step."""
    rows: Rows
    width: Width
    dtype: Dtype
    wanted_rows: Rows = 0
    """Number of last rows of which each rank then computes its part of the output head, and sends a ``HeadPart``."""
    result: ResultForm = "hidden"
    """Form of these parts: logits or candidates."""
    candidates: Candidates = 0
    timed: bool = False
    """Whether each rank tells its times with ``RankTimings``."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        count = len(self.sequences)
        matched = len(self.positions) == count == len(set(self.sequences)) and (self.rows if count == 1 else count)
        if not matched or matched != self.rows or self.wanted_rows > self.rows:
            return "has sequences, positions and rows that do not match"
        if (self.result == "hidden") != (self.wanted_rows == 0):
            return f"wants {self.wanted_rows} rows in form {self.result}"
        return result_problem(self.result, self.candidates)


class Partial(NamedTuple):
    """Any rank to all others: its partial sum ``number`` of a step. One frame follows: float32 (rows, width)."""

    step: Id
    number: Count
    """Counted from 0 within the step."""
    rows: Rows
    width: Width


class RankTimings(NamedTuple):
    """Rank to rank 0, before the last ``Partial`` of a timed step: how long its halves and sums took until then."""

    step: Id
    begun_us: Id
    """When the rank began the step, in microseconds of its own clock."""
    times: RankTimes
    """As ``wire.rank_marks.packed_times`` makes them."""


class HeadPart(NamedTuple):
    """Rank to rank 0: its part of a step's result. One frame follows: float32 (rows, width), logits or candidates."""

    step: Id
    rows: Rows
    width: ResultWidth


class RankFault(NamedTuple):
    """Any rank to all others: the sender cannot compute the step, or not go on with it."""

    step: Id
    reason: Text


RankMessage: TypeAlias = (
    RankJoined
    | CacheOrder
    | CacheDone
    | KvOrder
    | KvExported
    | StepOrder
    | Partial
    | RankTimings
    | HeadPart
    | RankFault
)
