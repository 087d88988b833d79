"""Report of the sequences that a stage holds of an epoch, for the coordinator of a ring that inherits the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from edgepp.layer_range import LayerRange
from edgepp.wire.field_types import HeldKind
from edgepp.wire.messages.recovery import Held

MAX_SEQUENCES = 128
"""Sequences of one message."""


def held_messages(epoch: int, what: HeldKind, layers: LayerRange, lengths: Mapping[int, int]) -> Iterator[Held]:
    """``Held`` messages for the sequences in ``lengths``, which gives the positions of each."""
    sequences = iter(lengths)
    while part := tuple(islice(sequences, MAX_SEQUENCES)):
        positions = tuple(lengths[sequence] for sequence in part)
        yield Held(epoch, what, layers.start, layers.stop, part, positions)
