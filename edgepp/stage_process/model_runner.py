"""Running frames on the layers of a stage, without sockets and threads: check, compute, and say what to send on.

A runner identifies a sequence by (epoch, sequence). The stage process and the ring within one process both use it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.backend.base import SequenceFault, StageModel, StepInterrupted
from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.finite_check import all_finite, not_finite
from edgepp.stage_process.first_rank import FirstRank
from edgepp.stage_process.frames import Frame, select_rows
from edgepp.stage_process.output_head import StageHead, WantedResult
from edgepp.stage_process.sequence_state import Key, SequenceState, keys_of, rekey
from edgepp.stage_process.step_outcome import Counters, StepOutcome
from edgepp.wire import codec
from edgepp.wire.messages.data import Batch, Forward

_MAX_FREED = 1024
"""Freed sequences whose late frames are recognised; more than can be under way at once."""

RESERVE_POSITIONS = 256
"""Positions by which the KV cache of a sequence grows at a time."""


@dataclass
class _OpenSequence:
    """An open sequence."""

    cache_id: int
    """Number of the KV cache in the model."""
    capacity: int
    """Highest number of positions that the sequence may reach."""
    reserved: int
    """Positions reserved in the KV cache so far; grows as needed, to leave memory to other sequences."""


class ModelRunner:
    """Runs frames on one ``StageModel``, and keeps its sequences."""

    def __init__(self, model: StageModel, context: int, head: StageHead | None = None) -> None:
        """``context`` is the highest number of positions of any sequence.

        ``head`` is the output head of a last stage of one process that has it; ranks bring their own.
        """
        self.model = model
        self._ranks = model if isinstance(model, FirstRank) else None
        self._head = self._ranks if self._ranks is not None and self._ranks.has_head else head
        self.sequence_states: list[SequenceState] = []
        """They hear of every sequence that is copied, freed or inherited."""
        self.context = context
        self.counters = Counters()
        self._open: dict[Key, _OpenSequence] = {}
        self._freed: deque[Key] = deque(maxlen=_MAX_FREED)
        self._next_cache_id = 0

    @property
    def has_head(self) -> bool:
        """Whether frames may ask for logits or candidates."""
        return self._head is not None

    @property
    def rank_times(self) -> Sequence[tuple[int, bytes]]:
        """Times of all ranks in the last step of a traced frame; empty for a stage of one process."""
        return self._ranks.times if self._ranks is not None else ()

    @property
    def sequences(self) -> int:
        """Number of open sequences."""
        return len(self._open)

    def run(self, frame: Frame, hidden: Array) -> StepOutcome:
        """Run one frame with its hidden states, (T, D) of a ``Forward`` or (B, D) of a ``Batch``.

        Rows of unknown sequences are dropped and counted.
        """
        started_s = time.perf_counter()
        if self._ranks is not None:
            self._ranks.timed = bool(frame.trace)
        try:
            outcome = self._forward(frame, hidden) if isinstance(frame, Forward) else self._batch(frame, hidden)
        except StepInterrupted:
            self.counters.void += 1
            return StepOutcome.empty()
        if outcome.frame is None:
            return outcome
        self.counters.frames += 1
        compute_us = (*frame.compute_us, int((time.perf_counter() - started_s) * 1e6))
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
                    return StepOutcome.empty()
                opened = self._begin(key, frame)
            opened.capacity = frame.capacity
            self._prepare(opened, frame.position, frame.rows)
            self._expect(frame, frame.wanted_rows)
            out = self.model.extend(opened.cache_id, hidden)
            if not all_finite(out):
                raise StageFault(not_finite(hidden))
            return StepOutcome(frame, self._result(frame, out))
        except StageFault as fault:
            self.free(*key)
            return StepOutcome.empty([(frame.sequence, str(fault))])

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
                self._expect(frame, len(rows))
                out = self.model.decode(cache_ids, hidden if len(rows) == frame.rows else hidden[rows])
                result = self._result(frame, out)
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
                    result = result[self._drop_infinite(frame, rows, hidden, out, faults)]
                if not rows:
                    break
                return StepOutcome(select_rows(frame, rows), result, faults)
        return StepOutcome.empty(faults)

    def _expect(self, frame: Frame, rows: int) -> None:
        if self._head is not None and frame.result != "hidden":
            self._head.expect(WantedResult(rows, frame.result, frame.candidates))

    def _result(self, frame: Frame, out: Array) -> Array:
        """Rows to send on: the hidden states ``out`` of a frame, or the result that the frame asks for."""
        return out if self._head is None or frame.result == "hidden" else self._head.result(out)

    def _drop_infinite(
        self, frame: Batch, rows: list[int], hidden: Array, out: Array, faults: list[tuple[int, str]]
    ) -> list[bool]:
        """Remove ``rows`` where ``out`` is not finite, and fail their sequences; which rows of ``out`` are good."""
        good = [all_finite(out[i : i + 1]) for i in range(len(rows))]
        for row, is_good in zip(rows, good, strict=True):
            if not is_good:
                self._fail(frame, frame.sequences[row], StageFault(not_finite(hidden[row : row + 1])), faults)
        rows[:] = [row for row, is_good in zip(rows, good, strict=True) if is_good]
        return good

    def _fail(self, frame: Batch, sequence: int, fault: StageFault, faults: list[tuple[int, str]]) -> None:
        self.free(frame.epoch, sequence)
        faults.append((sequence, str(fault)))

    def _begin(self, key: Key, frame: Forward) -> _OpenSequence:
        opened = self._new(frame.capacity, frame.position + frame.rows)
        if frame.position:
            source = self._open.get((frame.epoch, frame.source))
            if source is None:
                raise StageFault("the sequence to copy from is gone")
            self.model.fork(source.cache_id, opened.cache_id, frame.position, opened.reserved)
        else:
            self.model.open(opened.cache_id, opened.reserved)
        self._open[key] = opened
        if frame.position:
            for state in self.sequence_states:
                state.fork((frame.epoch, frame.source), key, frame.position)
        return opened

    def _new(self, capacity: int, end: int) -> _OpenSequence:
        """A sequence that is to hold ``end`` positions at first; its cache is not open yet."""
        if capacity > self.context:
            raise StageFault(f"{capacity} positions do not fit the model's context of {self.context}")
        self._next_cache_id += 1
        return _OpenSequence(self._next_cache_id, capacity, min(capacity, end + RESERVE_POSITIONS))

    def _prepare(self, opened: _OpenSequence, position: int, rows: int) -> None:
        """Truncate or grow a sequence so that ``rows`` positions from ``position`` on can be computed."""
        held, end = self.model.length(opened.cache_id), position + rows
        if position > held:
            raise StageFault(f"positions {held} to {position - 1} of the sequence never arrived")
        if position < held:
            self.model.truncate(opened.cache_id, position)
        if end > min(opened.capacity, self.context):
            raise StageFault(f"the sequence would have {end} positions, and it may have {opened.capacity}")
        self._grow(opened, end)

    def _grow(self, opened: _OpenSequence, end: int) -> None:
        if end > opened.reserved:
            opened.reserved = min(opened.capacity, self.context, end + RESERVE_POSITIONS)
            self.model.resize(opened.cache_id, opened.reserved)

    def reserve(self, key: Key, capacity: int, end: int) -> int:
        """Cache of a sequence with room for ``end`` positions and some more; opens an unknown sequence.

        Raises:
            StageFault: The sequence was freed, does not fit, or memory is short.
        """
        if key in self._freed:
            raise StageFault("the sequence was freed")
        opened = self._open.get(key)
        if opened is None:
            opened = self._new(capacity, end)
            self.model.open(opened.cache_id, opened.reserved)
            self._open[key] = opened
        elif end > min(capacity, self.context):
            raise StageFault(f"the sequence would have {end} positions, and it may have {capacity}")
        opened.capacity = capacity
        self._grow(opened, end)
        return opened.cache_id

    def cache_id(self, key: Key) -> int | None:
        """Number of the sequence's cache in the model; None for an unknown sequence."""
        opened = self._open.get(key)
        return None if opened is None else opened.cache_id

    def length(self, key: Key) -> int | None:
        """Positions that a sequence holds; None for an unknown sequence."""
        opened = self._open.get(key)
        return None if opened is None else self.model.length(opened.cache_id)

    def free(self, epoch: int, sequence: int) -> None:
        """Free a sequence; its frames that are still under way will be dropped."""
        key = (epoch, sequence)
        self._freed.append(key)
        opened = self._open.pop(key, None)
        if opened is not None:
            self.model.free(opened.cache_id)
        for state in self.sequence_states:
            state.free(key)

    def forget(self, epoch: int) -> None:
        """Free all sequences of an epoch."""
        for key in keys_of(self._open, epoch):
            self.free(*key)
        for state in self.sequence_states:
            state.forget(epoch)

    def inherit(self, old: int, new: int) -> None:
        """Move all sequences of the epoch ``old`` to the epoch ``new``; those without a position are freed."""
        for sequence, length in self.lengths(old).items():
            if not length:
                self.free(old, sequence)
        rekey(self._open, old, new)
        freed = [(new if epoch == old else epoch, sequence) for epoch, sequence in self._freed]
        self._freed = deque(freed, maxlen=_MAX_FREED)
        for state in self.sequence_states:
            state.inherit(old, new)

    def lengths(self, epoch: int) -> dict[int, int]:
        """Positions that each sequence of an epoch holds."""
        return {key[1]: self.model.length(self._open[key].cache_id) for key in keys_of(self._open, epoch)}
