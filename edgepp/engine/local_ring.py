"""The ring within one process: steps are computed in the calling thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from edgepp.backend.base import StageModel
from edgepp.engine.ring import Failed, RingEvent, Send, SendBatch, StageInfo, StageStats
from edgepp.engine.step_frames import frame_of, returned, traced_ring
from edgepp.error_boundary import failure
from edgepp.errors import StageFault
from edgepp.stage_process.frames import answer_to, sequences_of
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.step_outcome import StepOutcome
from edgepp.wire.frame_marks import clock_us, computed, encoded
from edgepp.wire.mailbox import Mailbox, Poller


class LocalRing:
    """A ring of stages in this process, which computes a step when it is sent. Implements ``Ring``."""

    overlaps = False

    def __init__(self, stages: Sequence[tuple[StageInfo, StageModel]]) -> None:
        self.stages = tuple(info for info, _ in stages)
        self._runners = [ModelRunner(model, info.context) for info, model in stages]
        self._traced = traced_ring(self.stages, [None] * len(self.stages))
        self._events: deque[RingEvent] = deque()
        self._poller = Poller[Any]()

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""
        self._poller.add(mailbox)

    def send(self, step: Send | SendBatch) -> None:
        """Compute a step on all stages; ``poll`` returns the result."""
        start = time.perf_counter()
        if step.trace is not None:
            step.trace.sent_s, step.trace.ring = start, self._traced
        frame, hidden = frame_of(step, 0, 0, "none", len(self.stages) - 1), step.hidden
        for info, runner in zip(self.stages, self._runners, strict=True):
            begun_us = clock_us()
            try:
                outcome = runner.run(frame, hidden)
            except BaseException as error:  # noqa: BLE001 - the stage's boundary, as in a process of its own
                reason = str(failure(error, "a step"))
                for sequence in sequences_of(frame):
                    runner.free(0, sequence)
                outcome = StepOutcome.empty([(sequence, reason) for sequence in sequences_of(frame)])
            for sequence, reason in outcome.faults:
                self._events.append(Failed(sequence, StageFault(f"{info} failed: {reason}")))
            if outcome.frame is None:
                return
            frame, hidden = outcome.frame, outcome.hidden
            if frame.trace:
                frame = frame._replace(trace=encoded(computed(frame.trace, begun_us, begun_us, begun_us, clock_us())))
        computed_s = time.perf_counter()
        answer, rows = answer_to(frame, hidden)
        self._events.append(returned(answer, rows, step, computed_s - start, computed_s))

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events so far; without one, wait for a mailbox for up to ``timeout_s`` seconds."""
        if not self._events:
            self._poller.wait(timeout_s)
        events = list(self._events)
        self._events.clear()
        return events

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage."""
        for runner in self._runners:
            runner.free(0, sequence)

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state now, first to last."""
        return [
            StageStats(one.sequences, one.model.kv_bytes, one.counters.frames, one.counters.dropped)
            for one in self._runners
        ]

    def close(self) -> None:
        """Free all sequences and the models."""
        for runner in self._runners:
            runner.forget(0)
        self._runners = []  # frees the models even while an error refers to this ring
