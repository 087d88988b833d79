"""The output head of a last stage of several ranks: each rank computes the logits of its part of the vocabulary.

Every rank has the hidden states of the last layer, so only results travel: whole rows of logits where a request needs
them, else each rank's best candidates, which rank 0 merges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepp.backend.candidates import merged, width_of
from edgepp.backend.loader import OutputHead
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.output_head import WantedResult, result_of
from edgepp.stage_process.rank_group import RankGroup


class SplitHead:
    """One rank's part of the final norm and output head."""

    def __init__(self, head: OutputHead, ids: Sequence[range]) -> None:
        """``ids`` are the token ids of each rank, in rank order."""
        self._head = head
        self._ids = ids

    def send_part(self, group: RankGroup, hidden: Array, wanted: WantedResult) -> None:
        """Compute this rank's part of what is wanted of the hidden states (T, D) of a step, and send it to rank 0.

        Raises:
            StageFault: the head failed.
            PeerLost: rank 0 is gone.
        """
        group.send_head_part(result_of(self._head, hidden, wanted, self._ids[group.rank].start))

    def result(self, group: RankGroup, hidden: Array, wanted: WantedResult) -> Array:
        """The wanted result, joined from the parts of all ranks: float32 logits (R, V), or candidates.

        Raises:
            StageFault: the head failed on a rank.
            PeerLost: a rank is gone, or broke the protocol.
        """
        parts = [result_of(self._head, hidden, wanted, self._ids[0].start)]
        for rank, ids in enumerate(self._ids[1:], 1):
            width = len(ids) if wanted.form == "logits" else width_of(wanted.candidates)
            parts.append(group.head_part_of(rank, wanted.rows, width))
        if wanted.form == "logits":
            return np.concatenate(parts, axis=1)
        return merged(parts, wanted.candidates)
