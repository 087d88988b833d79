"""What a backend offers: a stage's decoder layers, and the coordinator's two ends.

A backend knows tensors and caches. It knows no socket, no peer and no request. Every method of one object is called
from one thread, the one that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepp.errors import StageFault, UsageError
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint

Progress = Callable[[int, int], None]
"""Called with (done, total) bytes while weights load."""


KV_BITS = (8, 4)
"""Bits that keys and values may be kept in."""


@dataclass(frozen=True)
class BackendOptions:
    """How to compute; the same options give the same numbers."""

    threads: int = 1
    """Compute threads, where the backend takes a number."""
    exact: bool = False
    """Float32 arithmetic throughout, so that tokens can be compared across splits and backends."""
    spin: bool = False
    """Idle compute threads may spin: faster where this process has the machine to itself, ruinous where it has not."""
    kv_bits: int | None = None
    """Bits of each key and value in the cache, one of ``KV_BITS``; None keeps them as the backend computes them."""

    def __post_init__(self) -> None:
        """Hold ``kv_bits`` to what there is.

        Raises:
            UsageError: there is no such cache.
        """
        if self.kv_bits not in (None, *KV_BITS):
            raise UsageError(f"keys and values cannot be kept in {self.kv_bits} bits", "choose 8 or 4")


class SequenceFault(StageFault):
    """A step that some of its sequences cannot take; nothing was computed, and the others may go without them."""

    def __init__(self, message: str, sequences: tuple[int, ...], hint: str = "") -> None:
        super().__init__(message, hint)
        self.sequences = sequences


def check_rows(sequences: Sequence[int], hidden: Array, width: int) -> None:
    """Hold a decode step to one row of ``hidden`` (B, D), D being ``width``, for each of different ``sequences``.

    Raises:
        StageFault: it is no such step.
    """
    if not len(sequences) or hidden.shape != (len(sequences), width):
        raise StageFault(f"hidden states of shape {hidden.shape} are not ({len(sequences)}, {width})")
    if len(set(sequences)) < len(sequences):
        raise StageFault("a sequence is twice in one decode step")


def check_fork(source: int, held: int, sequence: int, length: int, capacity: int) -> None:
    """Hold ``StageModel.fork`` to a beginning that ``source``, which holds ``held`` positions, can give ``sequence``.

    Raises:
        SequenceFault: the source holds fewer positions.
        StageFault: it is no such beginning.
    """
    if length > held:
        raise SequenceFault(f"a sequence of {held} positions has no first {length} for another", (source,))
    if source == sequence or not 0 < length <= capacity:
        raise StageFault(f"sequence {sequence} of {capacity} cannot begin with {length} positions of {source}")


class StageModel(Protocol):
    """Decoder layers ``[a, b)`` with one KV cache a sequence.

    A sequence id is any int; hidden states are ``(T, D)`` in ``dtype``, C-contiguous.
    """

    layers: LayerRange
    hidden_size: int
    dtype: str
    """Dtype of the hidden states it returns: ``float32``, ``float16`` or ``bfloat16``. It takes any of them."""
    chunk: int
    """Tokens a prefill chunk should have so that this backend is efficient."""
    device: str
    """What computes, for people: ``cpu``, ``metal``."""

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can go back to any length, and another begin with its first positions."""

    def open(self, sequence: int, capacity: int) -> None:
        """Begin a sequence of at most ``capacity`` positions.

        Raises:
            StageFault: the capacity is beyond the model's context, or memory is short.
        """

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the sequence's next T positions; returns (T, D).

        Raises:
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or memory is short.
        """

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """Run row i of ``hidden`` (B, D) at the next position of ``sequences[i]``, all different; returns (B, D).

        One sequence gets the very numbers of ``extend``. More are computed together: the same numbers but for rounding,
        which depends on how many they are.

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or memory is short, after which some of the sequences may be
                unknown or one position on.
        """

    def truncate(self, sequence: int, length: int) -> None:
        """Forget every position from ``length`` on.

        Raises:
            StageFault: the family's cache cannot go back.
        """

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        """Begin ``sequence`` of at most ``capacity`` positions with the first ``length`` of ``source``, whose own stay.

        Like ``open`` it begins a sequence anew that is open already.

        Raises:
            SequenceFault: the source is unknown or holds fewer positions.
            StageFault: the family's caches cannot be cut, the capacity is beyond the model's context or below
                ``length``, or memory is short, after which ``sequence`` is unknown.
        """

    def resize(self, sequence: int, capacity: int) -> None:
        """Let a sequence reach ``capacity`` positions, more or fewer than before; memory for more is given back.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the capacity is beyond the model's context or below what the sequence holds, or memory is short;
                nothing changed.
        """

    def length(self, sequence: int) -> int:
        """Positions that the sequence's cache holds."""

    def free(self, sequence: int) -> None:
        """Forget the sequence and release its cache."""

    @property
    def kv_bytes(self) -> int:
        """Bytes that the caches of all open sequences take."""


class EmbeddingAndHead(Protocol):
    """The coordinator's share of a model: embedding before the first layer, norm and output head after the last."""

    positional: bool
    """Whether a token's hidden state depends on its position."""
    vocabulary: int
    """V: token ids are from 0 to V - 1."""

    def embed(self, tokens: Sequence[int], position: int | None = None, /) -> Array:
        """Hidden states (T, D) of T token ids, the first at ``position``, which only few families need."""

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of the last layer's hidden states (T, D)."""


class Backend(Protocol):
    """One way to compute."""

    name: str

    def load_stage(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
    ) -> StageModel:
        """Load decoder layers ``layers`` of the checkpoint and nothing else.

        Raises:
            ModelError: it lacks them, or the family does not fit.
        """

    def load_embedding_and_head(self, checkpoint: Checkpoint, options: BackendOptions) -> EmbeddingAndHead:
        """Load embedding, final norm and head of the checkpoint and nothing else.

        Raises:
            ModelError: it lacks them, or the family does not fit.
        """
