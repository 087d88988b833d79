"""The parts of a model that a backend computes: decoder layers for a stage, embedding and head for the coordinator.

A backend handles tensors and KV caches, and no sockets, peers or requests. All methods of an object are called in the
thread that created the object, unless the object says ``any_thread``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array

Progress = Callable[[int, int], None]
"""Called with (done, total) bytes while weights load."""

KvChunk = bytes | memoryview
"""C-contiguous bytes of keys and values."""

KV_BITS = (8, 4)
"""Bits per key or value that a quantised KV cache may have."""


@dataclass(frozen=True)
class BackendOptions:
    """Options of the computation; the same options give the same numbers."""

    threads: int = 1
    """Number of compute threads; the MLX backend chooses its own."""
    exact: bool = False
    """Compute everything in float32, so that tokens can be compared between splits and backends."""
    spin: bool = False
    """Let idle compute threads spin: faster where nothing else runs on this machine, much slower otherwise."""
    kv_bits: int | None = None
    """Bits per key or value in the cache, one of ``KV_BITS``; None stores keys and values as they are computed."""

    def __post_init__(self) -> None:
        """Check ``kv_bits``.

        Raises:
            UsageError: ``kv_bits`` is not one of ``KV_BITS``.
        """
        if self.kv_bits not in (None, *KV_BITS):
            raise UsageError(f"keys and values cannot be kept in {self.kv_bits} bits", "choose 8 or 4")


class SequenceFault(StageFault):
    """Fault of ``sequences`` that cannot take a step; nothing was computed, and other sequences may be retried."""

    def __init__(self, message: str, sequences: tuple[int, ...], hint: str = "") -> None:
        super().__init__(message, hint)
        self.sequences = sequences


class StepInterrupted(EdgeppError):  # noqa: N818 - no error, but what was asked for
    """The end of a step whose ``Interruption`` was set: nothing was computed, and the sequences are as before."""


class Interruption(Protocol):
    """Stops the step that a ``StageModel`` computes, as soon as it can; any thread may set it.

    A step that has ended already, or is about to, is not stopped. Steps are stopped at once until it is cleared.
    """

    def set(self) -> None:
        """Stop the present step, which raises ``StepInterrupted``."""

    def clear(self) -> None:
        """Let the next steps run to their end."""


class StageModel(Protocol):
    """Decoder layers ``[a, b)`` with one KV cache per sequence; called by the compute thread of a stage.

    A sequence id is any int; hidden states are (T, D) in ``dtype``, C-contiguous.
    """

    layers: LayerRange
    hidden_size: int
    dtype: str
    """Dtype of the returned hidden states: ``float32``, ``float16`` or ``bfloat16``; inputs may have any of them."""
    chunk: int
    """Tokens per prefill chunk with which this backend is efficient."""
    device: str
    """The device that computes, as users see it: ``cpu``, ``metal`` or ``cuda``."""
    kv_layout: str
    """Layout of exported keys and values: version, dtype or bits, heads and width, such as ``1 float32 3x64``.

    Stages of the same model can import keys and values from each other if and only if these texts are equal. Empty
    where a stage can neither export nor import, as where ``rewinds`` is false.
    """

    @property
    def interruption(self) -> Interruption | None:
        """What stops a step; None where steps always run to their end."""

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can be truncated to any length, and forked."""

    def open(self, sequence: int, capacity: int) -> None:
        """Begin a sequence of at most ``capacity`` positions; an open sequence of the same id is freed first.

        Raises:
            StageFault: the capacity is beyond the model's context, or memory is short.
        """

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the sequence's next T positions; returns (T, D).

        Raises:
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or memory is short.
            StepInterrupted: the ``interruption`` was set.
        """

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """Run row i of ``hidden`` (B, D) at the next position of ``sequences[i]``, all different; returns (B, D).

        A single sequence gets exactly the numbers of ``extend``. Several are computed together, and their rounding
        depends on the number of sequences.

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or memory is short; some of the sequences may then be
                unknown, or longer by one position.
            StepInterrupted: the ``interruption`` was set.
        """

    def truncate(self, sequence: int, length: int) -> None:
        """Drop every position of a sequence from ``length`` on.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the caches of the family cannot be truncated.
        """

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        """Begin ``sequence`` of at most ``capacity`` positions with a copy of the first ``length`` of ``source``.

        An open sequence of the same id is freed first.

        Raises:
            SequenceFault: the source is unknown or holds fewer positions.
            StageFault: the caches of the family cannot be truncated, the capacity is beyond the model's context or
                below ``length``, or memory is short; ``sequence`` is then unknown.
        """

    def resize(self, sequence: int, capacity: int) -> None:
        """Change the capacity of a sequence to ``capacity`` positions, and release memory beyond it.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the capacity is beyond the model's context or below what the sequence holds, or memory is short;
                nothing changed.
        """

    def length(self, sequence: int) -> int:
        """Positions that the cache of the sequence holds.

        Raises:
            SequenceFault: the sequence is unknown.
        """

    def export_kv(self, sequence: int, layers: LayerRange, start: int, stop: int) -> Sequence[KvChunk]:
        """Copy the keys and values of a sequence at positions [start, stop) in ``layers`` of the stage.

        The chunks are bytes in order, cut anywhere: for each layer the keys and then the values, each (heads, stop -
        start, width). Nothing of the stage is shared or changed, so that steps under way are not affected.

        Raises:
            SequenceFault: the sequence is unknown or holds fewer than ``stop`` positions.
            StageFault: ``kv_layout`` is empty, the stage lacks the layers, or the positions are not a range.
        """

    def import_kv(self, sequence: int, layers: LayerRange, start: int, stop: int, data: Sequence[KvChunk]) -> None:
        """Write keys and values that a stage of the same ``kv_layout`` exported, for the same layers and positions.

        The sequence is open with a capacity of at least ``stop``; its length stays as it is until ``set_length``.
        Layers may come in any order, and the positions of a layer without gaps. ``data`` may be cut into chunks
        anywhere. Positions beyond the length are lost when the sequence computes, is truncated or resized.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: ``kv_layout`` is empty, the stage lacks the layers, the positions do not fit the capacity or
                leave a gap, or the number of bytes is wrong, and nothing was written; or memory is short, and the
                sequence may be unknown.
        """

    def set_length(self, sequence: int, length: int) -> None:
        """Make ``length`` the number of positions of a sequence; all layers hold or have imported as many.

        A smaller number truncates the sequence. The numbers that the sequence computes afterwards are, bit for bit,
        those that the exported sequence would compute alone.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: some layer has fewer positions; nothing changed.
        """

    def free(self, sequence: int) -> None:
        """Release the cache of a sequence; an unknown sequence is ignored."""

    @property
    def kv_bytes(self) -> int:
        """Bytes that the KV caches of all open sequences take."""


class RowLogits(Protocol):
    """Float32 logits (V,) of one row: a numpy array, or logits on a GPU, which ``numpy.asarray`` copies to the host."""

    def __len__(self) -> int: ...

    def __array__(self) -> Array: ...

    def max(self) -> Any:
        """The largest logit, NaN where any is NaN."""

    def argmax(self) -> Any:
        """Id of the first of the largest logits."""


class EmbeddingAndHead(Protocol):
    """The coordinator's part of a model: embedding before the first layer, norm and output head after the last."""

    positional: bool
    """Whether the embedding of a token depends on its position."""
    vocabulary: int
    """Number of token ids V; ids are from 0 to V - 1."""
    any_thread: bool
    """Whether any thread may call the methods, several at the same time; else only the thread that made the object."""

    def embed(self, tokens: Sequence[int], position: int | None = None, /) -> Array:
        """Hidden states (T, D) of T token ids, the first of which is at ``position``, needed where ``positional``.

        Raises:
            EdgeppError: a token id is not in the vocabulary, or memory ran out.
        """

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of the hidden states (T, D) of the last layer.

        On a GPU the logits may stay there: the result then looks like an array and yields a ``RowLogits`` per row.

        Raises:
            StageFault: the hidden states do not fit the model, or the computation failed.
        """
