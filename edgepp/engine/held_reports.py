"""What the stages of a ring say that they hold, for the ring that replaces it or is replaced by it; bounded."""

from __future__ import annotations

from collections import Counter

from edgepp.engine.rebuild_plan import Holding
from edgepp.errors import RemoteProtocolError
from edgepp.layer_range import LayerRange
from edgepp.wire.messages.recovery import Held

MAX_HELD = 1 << 16
"""Sequences in all reports of one stage: its keys and values, its log and its copies."""


class HeldReports:
    """The holdings that stages report by ``Held``."""

    def __init__(self) -> None:
        self.holdings: list[Holding] = []
        self._num_sequences: Counter[int] = Counter()

    def add(self, stage: int, held: Held) -> None:
        """Take a report of stage number ``stage``.

        Raises:
            RemoteProtocolError: the stage reports more sequences than a stage can hold.
        """
        self._num_sequences[stage] += len(held.sequences)
        if self._num_sequences[stage] > MAX_HELD:
            raise RemoteProtocolError(f"it says that it holds more than {MAX_HELD} sequences")
        positions = dict(zip(held.sequences, held.positions, strict=True))
        self.holdings.append(Holding(stage, held.what, LayerRange(held.start, held.stop), positions))
