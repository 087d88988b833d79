"""What a stage does with a frame, without a socket: checks it, runs its layers, says what to send on.

A worker knows sequences by (epoch, sequence). It knows no peer and no thread; the stage process and the one-process
ring both drive it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from edgepp.backend.base import StageModel
from edgepp.errors import StageFault
from edgepp.model.checkpoint import Array
from edgepp.wire import codec
from edgepp.wire.messages import Forward, Hidden

_REMEMBERED = 1024
"""Freed sequences whose late frames are still recognised; more than can be on the way at once."""

Key = tuple[int, int]


@dataclass
class Counters:
    """What a stage has done since it started."""

    frames: int = 0
    dropped: int = 0


class Worker:
    """The sequences of one ``StageModel``."""

    def __init__(self, model: StageModel) -> None:
        self.model = model
        self.counters = Counters()
        self._slots: dict[Key, int] = {}
        self._freed: deque[Key] = deque(maxlen=_REMEMBERED)
        self._next_slot = 0

    @property
    def sequences(self) -> int:
        """Number of open sequences."""
        return len(self._slots)

    def forward(self, frame: Forward, hidden: Array) -> tuple[Forward, Array] | None:
        """Run one frame, ``hidden`` (T, D); the frame to send on, or None when the sequence is not (or no longer) ours.

        Raises:
            StageFault: the step cannot be done; the sequence is freed.
        """
        start = time.perf_counter()
        key = (frame.epoch, frame.sequence)
        slot = self._slots.get(key)
        if slot is None:
            if frame.position > 0 or key in self._freed:
                self.counters.dropped += 1
                return None
            slot = self._open(key, frame.capacity)
        try:
            self._rewind(slot, frame.position)
            hidden = self.model.extend(slot, hidden)
        except StageFault:
            self.free(*key)
            raise
        self.counters.frames += 1
        compute_us = (*frame.compute_us, int((time.perf_counter() - start) * 1e6))
        return frame._replace(dtype=codec.dtype_name(hidden.dtype), compute_us=compute_us), hidden

    def _open(self, key: Key, capacity: int) -> int:
        slot = self._next_slot
        self._next_slot += 1
        self.model.open(slot, capacity)
        self._slots[key] = slot
        return slot

    def _rewind(self, slot: int, position: int) -> None:
        held = self.model.length(slot)
        if position > held:
            raise StageFault(f"positions {held} to {position - 1} of the sequence never arrived")
        if position < held:
            self.model.truncate(slot, position)

    def free(self, epoch: int, sequence: int) -> None:
        """Release a sequence's slot; frames of it that are still on the way will be dropped."""
        key = (epoch, sequence)
        self._freed.append(key)
        slot = self._slots.pop(key, None)
        if slot is not None:
            self.model.free(slot)

    def forget(self, epoch: int) -> None:
        """Release every slot of an epoch."""
        for key in [key for key in self._slots if key[0] == epoch]:
            self.free(*key)


def answer_to(frame: Forward, hidden: Array) -> tuple[Hidden, Array]:
    """What the last stage returns for a finished ``frame``: its last ``want`` rows, (want, D)."""
    wanted = hidden[len(hidden) - frame.want :]
    return (
        Hidden(
            frame.epoch,
            frame.sequence,
            frame.step,
            frame.position + frame.rows,
            len(wanted),
            frame.width,
            frame.dtype,
            frame.codec,
            frame.compute_us,
        ),
        wanted,
    )
