"""What comes of running one frame on the layers of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.frames import Frame


@dataclass
class Counters:
    """Frames of all epochs since the start of the stage."""

    frames: int = 0
    dropped: int = 0
    void: int = 0
    """Frames that were not computed to their end: a guess before them was wrong, or their sequence was freed."""


@dataclass
class StepOutcome:
    """Result of one frame: the frame to send on, and the sequences that failed."""

    frame: Frame | None
    """None where no row is left to send on."""
    hidden: Array
    """Hidden states of ``frame``: (T, D) of a ``Forward``, (B, D) of a ``Batch``. Of a stage with the output head,
    where the frame asks for that, the result in place of those that are wanted."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """(sequence, reason) of the sequences that failed and are freed."""

    @classmethod
    def empty(cls, faults: Sequence[tuple[int, str]] = ()) -> StepOutcome:
        """Nothing to send on."""
        return cls(None, np.empty((0, 0), np.float32), list(faults))
