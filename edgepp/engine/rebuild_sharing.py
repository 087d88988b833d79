"""Beginnings that sequences share when they are refilled: computed for one of them, and copied for the others. Pure.

The choices of one request, and requests with one system prompt, begin with the same tokens. A stage that was lost
computes such a beginning once, and copies its keys and values to the sequences that follow, as for new requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgepp.engine.prefix_cache import Ids, common
from edgepp.engine.rebuild_plan import Holding, Rebuild, Refill

MIN_SHARED_POSITIONS = 64
"""A shorter beginning is computed once more: a chunk of it costs little."""


@dataclass(frozen=True)
class SharedStart:
    """The first ``length`` positions of a sequence, which are those of the sequence ``source``; 0 for none."""

    source: int = 0
    length: int = 0


NOT_SHARED = SharedStart()


class SharedStarts:
    """The sequences that are refilled, in the order in which their hidden states are sent."""

    def __init__(self, holdings: Sequence[Holding]) -> None:
        """``holdings`` are what the stages hold: only a sequence that they do not know begins as a copy."""
        self._holdings = holdings
        self._refilled: list[tuple[Rebuild, Ids]] = []

    def add(self, rebuild: Rebuild, tokens: Sequence[int] | Ids) -> SharedStart:
        """Add the next sequence, of which ``tokens`` has at least the ids of all its positions; what it shares.

        At least one position is left, whose hidden state makes the stages copy the others.
        """
        ids = np.asarray(tokens[: rebuild.length], np.int32)
        shared = [
            SharedStart(earlier.sequence, min(common(ids, other), len(ids) - 1))
            for earlier, other in self._refilled
            if earlier.refills == rebuild.refills
        ]
        self._refilled.append((rebuild, ids))
        longest = max(shared, key=lambda start: start.length, default=NOT_SHARED)
        if longest.length < MIN_SHARED_POSITIONS or any(self._knows(rebuild, refill) for refill in rebuild.refills):
            return NOT_SHARED
        return longest

    def _knows(self, rebuild: Rebuild, refill: Refill) -> bool:
        """Whether any stage that is refilled holds positions of the sequence."""
        stages = range(refill.first, refill.until + 1)
        return any(
            one.what == "kv" and one.holder in stages and one.positions.get(rebuild.sequence, 0)
            for one in self._holdings
        )
