"""Checks of the arguments of a ``StageModel``, which every backend makes before it computes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from edgepp.backend.base import SequenceFault
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array


def check_rows(sequences: Sequence[int], hidden: Array, width: int) -> None:
    """Check that a decode step has distinct ``sequences`` and one row of ``hidden`` (B, D) for each; D is ``width``.

    Raises:
        StageFault: ``hidden`` has another shape, or a sequence occurs twice.
    """
    if not len(sequences) or hidden.shape != (len(sequences), width):
        raise StageFault(f"hidden states of shape {hidden.shape} are not ({len(sequences)}, {width})")
    if len(set(sequences)) < len(sequences):
        raise StageFault("a decode step names a sequence twice")


Cache = TypeVar("Cache")


def caches_of(sequences: Sequence[int], held: Mapping[int, Cache], layers: LayerRange) -> list[Cache]:
    """The caches of ``sequences``, in their order, from ``held``, the caches of a stage of ``layers`` by sequence.

    Raises:
        SequenceFault: some sequences are unknown; the fault names them.
    """
    unknown = tuple(n for n in sequences if n not in held)
    if unknown:
        raise SequenceFault(f"layers {layers} hold no sequence {', '.join(map(str, unknown))}", unknown)
    return [held[n] for n in sequences]


class Bounded(Protocol):
    """A sequence that holds ``length`` of at most ``capacity`` positions."""

    length: int
    capacity: int


def check_room(sequences: Sequence[int], caches: Sequence[Bounded], positions: int) -> None:
    """Check that each of ``sequences``, with its cache in ``caches``, has room for ``positions`` more positions.

    Raises:
        SequenceFault: some sequences lack room; the fault names them.
    """
    full = [n for n, cache in enumerate(caches) if cache.length + positions > cache.capacity]
    if full:
        cache = caches[full[0]]
        raise SequenceFault(
            f"the sequence would have {cache.length + positions} positions, and it was opened for {cache.capacity}",
            tuple(sequences[n] for n in full),
            "shorten the prompt or ask for fewer tokens",
        )


def check_fork(source: int, held: int, sequence: int, length: int, capacity: int) -> None:
    """Check the arguments of ``StageModel.fork``, where ``source`` holds ``held`` positions.

    Raises:
        SequenceFault: the source holds fewer than ``length`` positions.
        StageFault: source and sequence are the same, or ``length`` is not from 1 to ``capacity``.
    """
    if length > held:
        raise SequenceFault(f"a sequence of {held} positions cannot give its first {length} to another", (source,))
    if source == sequence or not 0 < length <= capacity:
        raise StageFault(
            f"sequence {sequence} of {capacity} positions cannot begin with {length} positions of sequence {source}"
        )
