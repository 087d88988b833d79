"""Finished sequences that the stages keep, so that a prefix that two prompts share is computed once. Pure.

A conversation's next turn begins with all of the turn before; many prompts begin with one system prompt. A kept
sequence is found by its owner and its token ids, compared token by token, so a hit is not rounded to blocks, and no
owner learns from a fast answer what another owner has asked.

Which sequence is evicted first follows GreedyDual (Young, 1994): a sequence of N positions that R requests have begun
with ranks N·(1 + R) above the positions that had been evicted when it was last used. So short questions beside a long
conversation, such as for its title, do not displace it, and a conversation that nobody continues does go in the end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

MIN_SHARED_TOKENS = 16
"""Tokens that a prompt must share with a kept sequence to begin with it."""
MAX_KEPT = 64
"""Sequences that are kept at most."""
_MAX_REUSES = 7
"""Reuses that raise a rank, so that also the sequence of a long conversation goes some time after its end."""

Ids: TypeAlias = npt.NDArray[np.int32]


def common(one: Ids, other: Ids) -> int:
    """The length of the longest common prefix of two texts, in tokens."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


@dataclass(frozen=True)
class KeptSequence:
    """A finished sequence: the stages hold the keys and values of exactly ``ids``."""

    sequence: int
    owner: str
    ids: Ids
    reuses: int
    """How many requests have begun with it, or with the sequence that it continues."""
    rank: int
    """The sequence of lowest rank is evicted first."""


class PrefixCache:
    """The kept sequences, least recently used first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, KeptSequence] = OrderedDict()
        self._evicted_rank = 0
        """The highest rank that was evicted; ranks are counted from it, so they grow with time."""
        self.positions = 0
        """Positions that all kept sequences hold."""

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[KeptSequence]:
        return iter(list(self._kept.values()))

    def keep(self, sequence: int, owner: str, tokens: Sequence[int], reuses: int = 0) -> list[int]:
        """Keep a finished sequence; the sequences to free now, perhaps this one among them."""
        ids = np.asarray(tokens, np.int32)
        shared = [(kept, common(kept.ids, ids)) for kept in self._of(owner)]
        if len(ids) < MIN_SHARED_TOKENS or any(length == len(ids) for _, length in shared):
            return [sequence]
        covered = [kept for kept, length in shared if length == len(kept.ids)]
        for kept in covered:
            self.take(kept.sequence)
        reuses = max((reuses, *(kept.reuses for kept in covered)))
        self._kept[sequence] = KeptSequence(sequence, owner, ids, reuses, self._rank(len(ids), reuses))
        self.positions += len(ids)
        return [kept.sequence for kept in covered] + ([self.evict()] if len(self._kept) > MAX_KEPT else [])

    def find(self, owner: str, ids: Ids) -> tuple[KeptSequence, int] | None:
        """The kept sequence of ``owner`` with the longest common prefix with ``ids``, and the length of that prefix.

        Of equal prefixes, that of the shortest sequence.
        """
        found = max(((common(kept.ids, ids), kept) for kept in self._of(owner)), key=_length, default=None)
        return None if found is None or found[0] < MIN_SHARED_TOKENS else (found[1], found[0])

    def reused(self, kept: KeptSequence) -> None:
        """Note that a request begins with ``kept``."""
        reuses = kept.reuses + 1
        self._kept[kept.sequence] = replace(kept, reuses=reuses, rank=self._rank(len(kept.ids), reuses))
        self._kept.move_to_end(kept.sequence)

    def positions_below(self, kept: KeptSequence) -> int:
        """Positions of the sequences that would be evicted before ``kept``, if ``kept`` were used now."""
        rank = self._rank(len(kept.ids), kept.reuses + 1)
        return sum(len(one.ids) for one in self._kept.values() if one.rank < rank and one.sequence != kept.sequence)

    def take(self, sequence: int) -> None:
        """Keep a sequence no longer: a request takes the sequence over, or it is freed."""
        self.positions -= len(self._kept.pop(sequence).ids)

    def cut(self, sequence: int, length: int) -> list[int]:
        """Keep at most the first ``length`` positions of a sequence; the sequence to free, if too little is left."""
        kept = self._kept[sequence]
        if length >= len(kept.ids):
            return []
        if length < MIN_SHARED_TOKENS:
            self.take(sequence)
            return [sequence]
        self.positions -= len(kept.ids) - length
        self._kept[sequence] = replace(kept, ids=kept.ids[:length])
        return []

    def evict(self) -> int:
        """Stop keeping the sequence of lowest rank, of equal ones the least recently used; its number."""
        lowest = min(self._kept.values(), key=lambda kept: kept.rank)
        self._evicted_rank = max(self._evicted_rank, lowest.rank)
        self.take(lowest.sequence)
        return lowest.sequence

    def _rank(self, length: int, reuses: int) -> int:
        return self._evicted_rank + length * (1 + min(reuses, _MAX_REUSES))

    def _of(self, owner: str) -> list[KeptSequence]:
        return [kept for kept in self._kept.values() if kept.owner == owner]


def _length(found: tuple[int, KeptSequence]) -> tuple[int, int]:
    return found[0], -len(found[1].ids)
