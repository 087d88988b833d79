"""What a stage does with a frame, without a socket: checks it, runs its layers, says what to send on.

A runner knows sequences by (epoch, sequence). It knows no peer and no thread; the stage process and the one-process
ring both drive it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edgepp.backend.base import SequenceFault, StageModel
from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array
from edgepp.wire import codec
from edgepp.wire.messages import Batch, Forward, Hidden

_MAX_FREED = 1024
"""Freed sequences whose late frames are still recognised; more than can be on the way at once."""

_RESERVE_POSITIONS = 256
"""Positions that a sequence is given at a time."""

Key = tuple[int, int]
Frame: TypeAlias = Forward | Batch
Answer: TypeAlias = Hidden | Batch


@dataclass
class Counters:
    """What a stage has done since it started."""

    frames: int = 0
    dropped: int = 0


@dataclass
class StepOutcome:
    """What came of a frame: what to send on with its hidden states, unless nothing is left of it, and what failed."""

    frame: Frame | None
    hidden: Array
    faults: list[tuple[int, str]] = field(default_factory=list)
    """Sequences that failed and are freed, with the reason."""


@dataclass
class _OpenSequence:
    """A sequence under the number ``cache_id`` by which the model knows it."""

    cache_id: int
    capacity: int
    """The most positions it may reach."""
    room: int
    """Those that the model was asked for so far: what is never reached takes no memory from others."""


_NOTHING = np.empty((0, 0), np.float32)


class ModelRunner:
    """The sequences of one ``StageModel``."""

    def __init__(self, model: StageModel, context: int) -> None:
        """``context`` is the most positions that any sequence may reach."""
        self.model = model
        self._context = context
        self.counters = Counters()
        self._open: dict[Key, _OpenSequence] = {}
        self._freed: deque[Key] = deque(maxlen=_MAX_FREED)
        self._next_slot = 0

    @property
    def sequences(self) -> int:
        """Number of open sequences."""
        return len(self._open)

    def run(self, frame: Frame, hidden: Array) -> StepOutcome:
        """Run one frame with its ``hidden`` (T, D) or (B, D). What is not ours is dropped and counted."""
        start = time.perf_counter()
        outcome = self._forward(frame, hidden) if isinstance(frame, Forward) else self._batch(frame, hidden)
        if outcome.frame is None:
            return outcome
        self.counters.frames += 1
        compute_us = (*frame.compute_us, int((time.perf_counter() - start) * 1e6))
        dtype = codec.dtype_name(outcome.hidden.dtype)
        outcome.frame = outcome.frame._replace(dtype=dtype, compute_us=compute_us)
        return outcome

    def _forward(self, frame: Forward, hidden: Array) -> StepOutcome:
        key = (frame.epoch, frame.sequence)
        opened = self._open.get(key)
        try:
            if opened is None:
                if (frame.position > 0 and not frame.source) or key in self._freed:
                    self.counters.dropped += 1
                    return StepOutcome(None, _NOTHING)
                opened = self._begin(key, frame)
            opened.capacity = frame.capacity
            self._prepare(opened, frame.position, frame.rows)
            out = self.model.extend(opened.cache_id, hidden)
            if not all_finite(out):
                raise StageFault(_not_finite(hidden))
            return StepOutcome(frame, out)
        except StageFault as fault:
            self.free(*key)
            return StepOutcome(None, _NOTHING, [(frame.sequence, str(fault))])

    def _batch(self, frame: Batch, hidden: Array) -> StepOutcome:
        rows: list[int] = []
        cache_ids: list[int] = []
        faults: list[tuple[int, str]] = []
        for row, (sequence, position) in enumerate(zip(frame.sequences, frame.positions, strict=True)):
            opened = self._open.get((frame.epoch, sequence))
            if opened is None:
                self.counters.dropped += 1
                continue
            try:
                self._prepare(opened, position, 1)
            except StageFault as fault:
                self._fail(frame, sequence, fault, faults)
                continue
            rows.append(row)
            cache_ids.append(opened.cache_id)
        while cache_ids:
            try:
                out = self.model.decode(cache_ids, hidden if len(rows) == frame.rows else hidden[rows])
            except SequenceFault as fault:
                for cache_id in fault.sequences:
                    row = rows.pop(cache_ids.index(cache_id))
                    cache_ids.remove(cache_id)
                    self._fail(frame, frame.sequences[row], fault, faults)
            except StageFault as fault:
                for row in rows:
                    self._fail(frame, frame.sequences[row], fault, faults)
                break
            else:
                if not all_finite(out):
                    out = self._only_finite(frame, rows, hidden, out, faults)
                if not rows:
                    break
                return StepOutcome(_select_rows(frame, rows), out, faults)
        return StepOutcome(None, _NOTHING, faults)

    def _only_finite(
        self, frame: Batch, rows: list[int], hidden: Array, out: Array, faults: list[tuple[int, str]]
    ) -> Array:
        """``out`` and ``rows`` without those that are no numbers; their sequences fail."""
        good = [all_finite(out[i : i + 1]) for i in range(len(rows))]
        for row, fine in zip(rows, good, strict=True):
            if not fine:
                self._fail(frame, frame.sequences[row], StageFault(_not_finite(hidden[row : row + 1])), faults)
        rows[:] = [row for row, fine in zip(rows, good, strict=True) if fine]
        return out[good]

    def _fail(self, frame: Batch, sequence: int, fault: StageFault, faults: list[tuple[int, str]]) -> None:
        self.free(frame.epoch, sequence)
        faults.append((sequence, str(fault)))

    def _begin(self, key: Key, frame: Forward) -> _OpenSequence:
        if frame.capacity > self._context:
            raise StageFault(f"{frame.capacity} positions do not fit the model's context of {self._context}")
        opened = _OpenSequence(
            self._next_slot, frame.capacity, min(frame.capacity, frame.position + frame.rows + _RESERVE_POSITIONS)
        )
        self._next_slot += 1
        if frame.position:
            source = self._open.get((frame.epoch, frame.source))
            if source is None:
                raise StageFault("the sequence that it was to begin with is gone")
            self.model.fork(source.cache_id, opened.cache_id, frame.position, opened.room)
        else:
            self.model.open(opened.cache_id, opened.room)
        self._open[key] = opened
        return opened

    def _prepare(self, opened: _OpenSequence, position: int, rows: int) -> None:
        """Bring a sequence to where ``rows`` positions from ``position`` on can be computed."""
        held, end = self.model.length(opened.cache_id), position + rows
        if position > held:
            raise StageFault(f"positions {held} to {position - 1} of the sequence never arrived")
        if position < held:
            self.model.truncate(opened.cache_id, position)
        if end > min(opened.capacity, self._context):
            raise StageFault(f"the sequence would have {end} positions, and it may have {opened.capacity}")
        if end > opened.room:
            opened.room = min(opened.capacity, self._context, end + _RESERVE_POSITIONS)
            self.model.resize(opened.cache_id, opened.room)

    def free(self, epoch: int, sequence: int) -> None:
        """Release a sequence's cache_id; frames of it that are still on the way will be dropped."""
        key = (epoch, sequence)
        self._freed.append(key)
        opened = self._open.pop(key, None)
        if opened is not None:
            self.model.free(opened.cache_id)

    def forget(self, epoch: int) -> None:
        """Release every cache_id of an epoch."""
        for key in [key for key in self._open if key[0] == epoch]:
            self.free(*key)


_EXPONENTS: Mapping[str, int] = {"float16": 0x7C00, "bfloat16": 0x7F80}


def all_finite(hidden: Array) -> bool:
    """Whether ``hidden`` holds numbers only, and no infinity. Cheap: it is asked at every step."""
    exponent = _EXPONENTS.get(hidden.dtype.name)
    if exponent is None:
        return bool(np.isfinite(hidden).all())
    return not bool(((hidden.view(np.uint16) & exponent) == exponent).any())


def _not_finite(given: Array) -> str:
    """Why a step's hidden states are no numbers, from what it was given."""
    if not all_finite(given):
        return "the hidden states that it was sent are not finite numbers"
    return "its layers' hidden states are not finite numbers: its weights are damaged, or overflow their dtype"


def _select_rows(frame: Batch, rows: list[int]) -> Batch:
    """The frame with these of its rows."""
    if len(rows) == frame.rows:
        return frame
    sequences = tuple(frame.sequences[row] for row in rows)
    return frame._replace(sequences=sequences, positions=tuple(frame.positions[row] for row in rows))


def sequences_of(frame: Frame) -> tuple[int, ...]:
    """The sequences that a frame belongs to."""
    return frame.sequences if isinstance(frame, Batch) else (frame.sequence,)


def answer_to(frame: Frame, hidden: Array) -> tuple[Answer, Array]:
    """What the last stage returns for a finished ``frame``: a batch whole, of a chunk its last ``want`` rows."""
    if isinstance(frame, Batch):
        return frame, hidden
    wanted = hidden[len(hidden) - frame.wanted_rows :]
    answer = Hidden(
        frame.epoch, frame.sequence, frame.step, len(wanted), frame.width, frame.dtype, frame.codec, frame.compute_us
    )
    return answer, wanted
