"""Rings and a pipeline that record every step, in the engine thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgepp.backend.base import EmbeddingAndHead
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.ring import Failed, Returned, Ring, RingEvent, Send, SendBatch, StageInfo, StageStats
from edgepp.engine.stage_handshake import Endpoint
from edgepp.model.weights.checkpoint import Array
from edgepp.wire.mailbox import Mailbox


class WatchedRing:
    """A ring that delegates to another ring. Subclasses send and poll, and record steps."""

    def __init__(self, ring: Ring) -> None:
        self.stages: tuple[StageInfo, ...] = ring.stages
        self.overlaps = ring.overlaps
        self._ring = ring

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""
        self._ring.wake_on(mailbox)

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage; its steps in the ring give no event."""
        self._ring.free(sequence)

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state by its latest report, first to last. Safe from any thread."""
        return self._ring.stage_stats()

    def close(self) -> None:
        """Release everything."""
        self._ring.close()


@dataclass(frozen=True)
class StepTrip:
    """A step that passed all stages and returned."""

    step: Send | SendBatch
    sent_s: float
    back_s: float
    returned: Returned

    @property
    def wire_s(self) -> float:
        """Seconds of the trip without the computing of the stages."""
        return self.returned.ring_s - sum(self.returned.compute_s)

    @property
    def positions(self) -> tuple[int, ...]:
        """Position of each row of a decode step."""
        return self.step.positions if isinstance(self.step, SendBatch) else (self.step.position,)


class Recorder(WatchedRing):
    """A ring that records the trip of every step."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring)
        self.trips: list[StepTrip] = []
        self._sent: deque[tuple[Send | SendBatch, float]] = deque()

    def send(self, step: Send | SendBatch) -> None:
        """Put a step into the ring, and note when."""
        self._sent.append((step, time.perf_counter()))
        self._ring.send(step)

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events within ``timeout_s`` seconds; records the trip of each step that returned."""
        events = self._ring.poll(timeout_s)
        now = time.perf_counter()
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if not isinstance(event, Returned):
                continue
            step, sent_s = self._sent.popleft()
            while not set(_sequences(step)) & set(event.sequences):  # cancelled
                step, sent_s = self._sent.popleft()
            self.trips.append(StepTrip(step, sent_s, now, event))
        return events


def _sequences(step: Send | SendBatch) -> tuple[int, ...]:
    return step.sequences if isinstance(step, SendBatch) else (step.sequence,)


@dataclass
class EngineRecord:
    """Record of the engine thread, in order; only that thread writes it."""

    sent: list[tuple[int, int, bool]] = field(default_factory=list)
    """Steps in the ring: rows, cached positions of all rows, and whether the step decodes."""
    decoded: list[tuple[int, int, tuple[float, ...]]] = field(default_factory=list)
    """Decode steps: rows, positions, seconds of each stage."""
    prefilled: list[tuple[int, int, tuple[float, ...]]] = field(default_factory=list)
    """Prefill chunks: tokens, earlier positions, seconds of each stage."""
    lone_s: list[float] = field(default_factory=list)
    """Seconds of steps alone in the ring, without computing and sending."""
    sending_s: list[float] = field(default_factory=list)
    embedding: list[tuple[int, float]] = field(default_factory=list)
    heads: list[tuple[int, float]] = field(default_factory=list)
    rest: list[tuple[int, int, float]] = field(default_factory=list)
    """Between two waits: received results, sampled rows, and seconds without those recorded above."""
    alone: bool = True
    """Whether the last sent step was alone in the ring."""
    row_bytes: int = 1

    def clear(self) -> None:
        """Clear the record; the ring must be empty."""
        for notes in (self.decoded, self.prefilled, self.lone_s, self.sending_s, self.embedding, self.heads, self.rest):
            notes.clear()


class RecordingEnds:
    """Embedding and head of a model, which record their times."""

    def __init__(self, ends: EmbeddingAndHead, record: EngineRecord) -> None:
        self._ends, self._record = ends, record
        self.positional, self.vocabulary, self.any_thread = ends.positional, ends.vocabulary, False
        self.spent_s = 0.0
        self.sampled = 0

    def embed(self, tokens: Sequence[int], position: int | None = None, /) -> Array:
        """Embed ``tokens``, and add the time to the record."""
        began_s = time.perf_counter()
        hidden = self._ends.embed(tokens, position)
        took_s = time.perf_counter() - began_s
        self.spent_s += took_s
        self._record.embedding.append((len(tokens), took_s))
        return hidden

    def logits(self, hidden: Array) -> Array:
        """Compute logits of ``hidden``, and add the time to the record."""
        began_s = time.perf_counter()
        logits = self._ends.logits(hidden)
        took_s = time.perf_counter() - began_s
        self.spent_s += took_s
        self.sampled += len(hidden)
        self._record.heads.append((len(hidden), took_s))
        return logits


class RecordingRing(WatchedRing):
    """A ring that records its times."""

    def __init__(self, ring: Ring, ends: RecordingEnds, record: EngineRecord) -> None:
        super().__init__(ring)
        self._ends, self._record = ends, record
        self._polled_s: float | None = None
        self._taken = 0

    def send(self, step: Send | SendBatch) -> None:
        """Put a step into the ring, and record the step."""
        record = self._record
        rows = len(step.hidden)
        decodes = isinstance(step, SendBatch) or step.want == rows == 1
        positions = sum(step.positions) if isinstance(step, SendBatch) else step.position
        record.alone = not record.sent
        record.row_bytes = step.hidden.nbytes // rows
        record.sent.append((rows, positions, decodes))
        began_s = time.perf_counter()
        self._ring.send(step)
        took_s = time.perf_counter() - began_s
        record.sending_s.append(took_s)
        self._ends.spent_s += took_s

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events within ``timeout_s`` seconds; records the times of each step that returned."""
        now_s, record, ends = time.perf_counter(), self._record, self._ends
        if self._polled_s is not None and self._taken:
            record.rest.append((self._taken, ends.sampled, max(0.0, now_s - self._polled_s - ends.spent_s)))
        events = self._ring.poll(timeout_s)
        self._polled_s, self._taken, ends.spent_s, ends.sampled = time.perf_counter(), len(events), 0.0, 0
        for event in events:
            if isinstance(event, Returned):
                self._record_returned(event)
        return events

    def _record_returned(self, event: Returned) -> None:
        record = self._record
        rows, positions, decodes = record.sent.pop(0)
        if decodes and not all(other for *_, other in record.sent):
            return  # a chunk is computed at the same time, on the same machine
        if decodes:
            record.decoded.append((rows, positions, event.compute_s))
            if record.alone and rows == 1:
                record.lone_s.append(event.ring_s - sum(event.compute_s) - record.sending_s[-1])
        else:
            record.prefilled.append((rows, positions, event.compute_s))


class RecordedPipeline(Pipeline):
    """A pipeline that records the work of its engine thread."""

    def __init__(self, options: PipelineOptions) -> None:
        self.record = EngineRecord()
        super().__init__(options)

    def __enter__(self) -> RecordedPipeline:
        return self

    def _open_parts(self, endpoints: tuple[Endpoint, ...]) -> EngineParts:
        parts = super()._open_parts(endpoints)
        timed = RecordingEnds(parts.ends, self.record)
        ring = RecordingRing(parts.ring, timed, self.record)
        # The simulated coordinator does one thing at a time, too.
        return replace(parts, ring=ring, ends=timed, draws_beside=False, spare_steps=0)
