"""The frame that a stage computes, which the control thread stops where its result is wanted no longer.

Where a guess was wrong, the coordinator tells all stages at once by ``Void``. A stage that went on with the void frames
would take processors, and itself, from the frame that replaces them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from edgepp.backend.base import Interruption
from edgepp.stage_process.frames import Frame, sequences_of, spans_of
from edgepp.wire.messages.control import Void

_MAX_SEQUENCES = 256
"""Sequences whose newest ``Void`` is kept; a frame that is void by an older one is computed in vain."""


class RunningFrame:
    """The frame that the compute thread runs now, and what makes frames void. Any thread may call the methods."""

    def __init__(self, interruption: Interruption | None) -> None:
        """``interruption`` stops the model's step; with None, frames that have begun run to their end."""
        self._interruption = interruption
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._void: OrderedDict[tuple[int, int], Void] = OrderedDict()
        """The newest message for each (epoch, sequence)."""

    def begin(self, frame: Frame) -> bool:
        """Note that ``frame`` runs from now on until ``end``; False where it is void and must not run."""
        with self._lock:
            if self._is_void(frame):
                return False
            self._frame = frame
            if self._interruption is not None:
                self._interruption.clear()
            return True

    def end(self) -> None:
        """Note that no frame runs."""
        with self._lock:
            self._frame = None

    def void(self, message: Void) -> None:
        """Let frames that ``message`` makes void not run, and stop the one that runs if it is one of them."""
        with self._lock:
            key = message.epoch, message.sequence
            self._void[key] = message
            self._void.move_to_end(key)
            if len(self._void) > _MAX_SEQUENCES:
                self._void.popitem(last=False)
            if self._frame is not None and self._is_void(self._frame):
                self._interrupt()

    def leave(self, epoch: int, sequence: int | None = None) -> None:
        """Stop the running frame if it is of ``sequence`` alone; or of any sequence of the epoch, for None."""
        with self._lock:
            frame = self._frame
            if frame is None or frame.epoch != epoch:
                return
            if sequence is None or sequences_of(frame) == (sequence,):
                self._interrupt()

    def _interrupt(self) -> None:
        if self._interruption is not None:
            self._interruption.set()

    def _is_void(self, frame: Frame) -> bool:
        """Whether all parts of ``frame`` are void; those of a replay are not, whose number is the highest of all."""
        return all(
            (void := self._void.get((frame.epoch, sequence))) is not None
            and frame.step < void.step
            and position >= void.position
            for sequence, position, _ in spans_of(frame)
        )
