"""The output head of a last stage of several ranks: each rank computes the logits of its part of the vocabulary.

Every rank has the hidden states of the last layer, so only results travel: whole rows of logits where a request needs
them, else each rank's best candidates, which rank 0 merges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgepp.backend.candidates import candidates_of, merged, width_of
from edgepp.backend.loader import RankHead
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.rank_group import RankGroup
from edgepp.wire.field_types import ResultForm


class WantedResult(NamedTuple):
    """Rows and form of a step's result, as in ``StepOrder``."""

    rows: int = 0
    form: ResultForm = "hidden"
    candidates: int = 0


NO_RESULT = WantedResult()
"""Nothing but the hidden states."""


class SplitHead:
    """One rank's part of the final norm and output head."""

    def __init__(self, head: RankHead, ids: Sequence[range]) -> None:
        """``ids`` are the token ids of each rank, in rank order."""
        self._head = head
        self._ids = ids

    def send_part(self, group: RankGroup, hidden: Array, wanted: WantedResult) -> None:
        """Compute this rank's part of what is wanted of the hidden states (T, D) of a step, and send it to rank 0.

        Raises:
            StageFault: the head failed.
            PeerLost: rank 0 is gone.
        """
        group.send_head_part(self._part(group.rank, hidden, wanted))

    def result(self, group: RankGroup, hidden: Array, wanted: WantedResult) -> Array:
        """The wanted result, joined from the parts of all ranks: float32 logits (R, V), or candidates.

        Raises:
            StageFault: the head failed on a rank.
            PeerLost: a rank is gone, or broke the protocol.
        """
        parts = [self._part(0, hidden, wanted)]
        for rank, ids in enumerate(self._ids[1:], 1):
            width = len(ids) if wanted.form == "logits" else width_of(wanted.candidates)
            parts.append(group.head_part_of(rank, wanted.rows, width))
        if wanted.form == "logits":
            return np.concatenate(parts, axis=1)
        return merged(parts, wanted.candidates)

    def _part(self, rank: int, hidden: Array, wanted: WantedResult) -> Array:
        logits = self._head.logits(hidden[len(hidden) - wanted.rows :])
        if wanted.form == "logits":
            return logits
        return candidates_of(logits, self._ids[rank].start, wanted.candidates)
