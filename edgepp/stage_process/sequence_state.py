"""State per sequence that a stage keeps in addition to the KV cache, and that begins and ends with the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias, TypeVar

Key: TypeAlias = tuple[int, int]
"""(epoch, sequence)."""
V = TypeVar("V")


class SequenceState(Protocol):
    """State per sequence; a ``ModelRunner`` calls these methods when a sequence is copied, freed or inherited."""

    def fork(self, source: Key, key: Key, length: int) -> None:
        """Begin ``key`` with the state of the first ``length`` positions of ``source``."""

    def free(self, key: Key) -> None:
        """Forget a sequence; an unknown sequence is ignored."""

    def forget(self, epoch: int) -> None:
        """Forget all sequences of an epoch."""

    def inherit(self, old: int, new: int) -> None:
        """Move all sequences of the epoch ``old`` to the epoch ``new``."""


def rekey(states: dict[Key, V], old: int, new: int) -> None:
    """Move the states of the epoch ``old`` to the epoch ``new``."""
    for key in keys_of(states, old):
        states[new, key[1]] = states.pop(key)


def keys_of(states: Mapping[Key, V], epoch: int) -> list[Key]:
    """Keys of the epoch ``epoch``."""
    return [key for key in states if key[0] == epoch]
