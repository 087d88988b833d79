"""Finished sequences that the stages keep, so that a prefix that two prompts share is computed once. Pure.

A conversation's next turn begins with all of the turn before; many prompts begin with one system prompt. A kept
sequence is found by its owner and its token ids, compared token by token, so a hit is not rounded to blocks, and no
owner learns from a fast answer what another owner has asked. The least recently used sequence is evicted first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

MIN_SHARED_TOKENS = 16
"""Tokens that a prompt must share with a kept sequence to begin with it."""
MAX_KEPT = 64
"""Sequences that are kept at most."""

Ids: TypeAlias = npt.NDArray[np.int32]


def common(one: Ids, other: Ids) -> int:
    """The length of the longest common prefix of two texts, in tokens."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


@dataclass(frozen=True)
class Kept:
    """A finished sequence: the stages hold the keys and values of exactly ``ids``."""

    sequence: int
    owner: str
    ids: Ids


class PrefixCache:
    """The kept sequences, least recently used first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self.positions = 0
        """Positions that all kept sequences hold."""

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, sequence: int, owner: str, tokens: Sequence[int]) -> list[int]:
        """Keep a finished sequence; the sequences to free now, perhaps this one among them."""
        ids = np.asarray(tokens, np.int32)
        shared = [(kept, common(kept.ids, ids)) for kept in self._of(owner)]
        if len(ids) < MIN_SHARED_TOKENS or any(length == len(ids) for _, length in shared):
            return [sequence]
        covered = [kept.sequence for kept, length in shared if length == len(kept.ids)]
        for number in covered:
            self.take(number)
        self._kept[sequence] = Kept(sequence, owner, ids)
        self.positions += len(ids)
        return covered + ([self.evict()] if len(self._kept) > MAX_KEPT else [])

    def find(self, owner: str, ids: Ids) -> tuple[Kept, int] | None:
        """The kept sequence of ``owner`` with the longest common prefix with ``ids``, and the length of that prefix."""
        found = max(((common(kept.ids, ids), kept) for kept in self._of(owner)), key=_length, default=None)
        if found is None or found[0] < MIN_SHARED_TOKENS:
            return None
        self._kept.move_to_end(found[1].sequence)
        return found[1], found[0]

    def take(self, sequence: int) -> None:
        """Keep a sequence no longer: a request takes the sequence over, or it is freed."""
        self.positions -= len(self._kept.pop(sequence).ids)

    def evict(self) -> int:
        """Stop keeping the least recently used sequence; its number."""
        oldest = next(iter(self._kept))
        self.take(oldest)
        return oldest

    def _of(self, owner: str) -> list[Kept]:
        return [kept for kept in self._kept.values() if kept.owner == owner]


def _length(found: tuple[int, Kept]) -> int:
    return found[0]
