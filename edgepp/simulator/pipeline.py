"""One simulated pipeline: the engine's own core, with modelled costs in place of stages, links and coordinator.

The pipeline drives ``EngineCore`` as the engine thread does: receive results, admit, send one step. Its ring is a line
of servers that take one step after the other, so the time of a step's return is known when the step is sent.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass

from edgepp.engine.core import EngineCore
from edgepp.engine.request import Request
from edgepp.engine.scheduler import PrefillChunk, Step
from edgepp.errors import EdgeppError
from edgepp.simulator.costs import HEADER_BYTES, Replica
from edgepp.simulator.job import Job, Loss
from edgepp.simulator.result import Fate, ReplicaUse
from edgepp.simulator.workload import AfterLoss, Failure


@dataclass(frozen=True)
class _Traits:
    """A modelled stage as the core reads it. Implements ``StageTraits``."""

    chunk: int
    context: int
    prefill_s: float
    decode_s: float
    rewinds: bool = True


class SimPipeline:
    """A pipeline and its coordinator. The simulation reports arrivals and failures in the order of time."""

    def __init__(self, index: int, replica: Replica, gaps_s: array[float]) -> None:
        """Seconds between the tokens of each request are appended to ``gaps_s``."""
        self.index = index
        self.next_s = math.inf
        """When the coordinator acts next without a new arrival; infinite for never."""
        self.outstanding = 0
        """Requests that have arrived and not ended."""
        self.up_s = 0.0
        """When the pipeline can begin requests; in the future only while it is known to be down."""
        self._replica = replica
        self._gaps_s = gaps_s
        self._costs = list(dict.fromkeys(replica.stages))
        self._cost_of = [self._costs.index(cost) for cost in replica.stages]
        self._latency_s = [link.latency_s for link in replica.links]
        self._byte_s = [1 / link.bytes_per_s for link in replica.links]
        self._jobs: dict[int, Job] = {}
        self._inbox: deque[Job] = deque()
        self._worked_s = [0.0] * len(self._costs)
        self._coordinator_s = self._active_s = 0.0
        self._steps = self._rows = self._batches = self._preempted = 0
        self._loss: Loss | None = None
        self._open(0.0)

    def _open(self, now_s: float) -> None:
        """Start at ``now_s`` with empty caches and an empty ring."""
        replica = self._replica
        chunk = replica.chunk
        speeds = [
            _Traits(chunk, replica.context, cost.prefill_s(chunk, 0) / chunk, cost.decode_s(1, 0))
            for cost in replica.stages
        ]
        self._core: EngineCore[Request] = EngineCore(speeds, replica.budget)
        self._ring: deque[tuple[float, Step, float]] = deque()
        self._stage_free_s = [now_s] * len(replica.stages)
        self._link_free_s = [now_s] * len(replica.links)
        self._free_s = self._active_since_s = now_s
        self._polled = self._active = False

    def submit(self, job: Job, now_s: float) -> None:
        """Add a request that arrives at ``now_s``."""
        job.replica = self.index
        self.outstanding += 1
        self._jobs[job.request.id] = job
        self._inbox.append(job)
        if now_s >= self.up_s:
            self.next_s = min(self.next_s, max(now_s, self._free_s))

    def advance(self, until_s: float) -> None:
        """Simulate until the coordinator's next action is at ``until_s`` or later."""
        while self.next_s < until_s:
            if not self._polled:
                self._poll()
                if self.next_s >= until_s:
                    return
            self._send_next()

    def fail(self, failure: Failure) -> bool:
        """Let a stage die: steps in the ring are lost, and so are steps sent until the failure is detected.

        Returns whether the failure has to be detected; False if the detection of another one is under way.
        """
        if self._loss is not None:
            self._loss.returns_s = max(self._loss.returns_s, failure.returns_s)
            return False
        self._loss = Loss(failure, failure.returns_s)
        self._ring.clear()
        self.next_s = min(self.next_s, max(failure.at_s, self._free_s))
        return True

    def prolong(self, up_s: float) -> None:
        """Let a stage die while the pipeline is known to be down."""
        self.up_s = max(self.up_s, up_s)

    def lose(self, now_s: float, after: AfterLoss) -> Loss | None:
        """Detect that a stage is gone: every request fails, or waits to be prefilled when the stages are back."""
        loss, self._loss = self._loss, None
        if loss is None:
            return None
        self.up_s = loss.up_s = max(now_s, loss.returns_s) + after.reload_s
        self.next_s = math.inf
        self._rest(now_s)
        live = list(self._core.live.values())
        self._inbox.clear()
        loss.lost_positions = sum(request.sent for request in live)
        recovers = after.recover and self.up_s < math.inf
        if recovers:
            loss.begun_again = len(live)
            for request in live:
                self._core.preempt(request)
                job = self._jobs[request.id]
                job.stalled = job.stalled or loss
        for job in sorted(self._jobs.values(), key=lambda job: job.request.id):
            if recovers:
                self._inbox.append(job)
            else:
                loss.failed += 1
                self._core.finish(job.request)
                self._finish(job, "failed")
        return loss

    def restart(self, now_s: float) -> bool:
        """Start again if all stages are loaded; False if another stage has failed meanwhile."""
        if now_s < self.up_s:
            return False
        self._preempted += self._core.load.preempted
        self._open(now_s)
        self.next_s = now_s if self._inbox else math.inf
        return True

    def use(self) -> ReplicaUse:
        """How busy the pipeline was."""
        active_s = self._active_s or 1.0
        return ReplicaUse(
            self._active_s,
            tuple(self._worked_s[which] / active_s for which in self._cost_of),
            self._coordinator_s / active_s,
            self._steps,
            self._rows,
            self._batches,
            self._preempted + self._core.load.preempted,
        )

    def _poll(self) -> None:
        """Receive the steps that have come round."""
        now_s = began_s = self.next_s
        ring = self._ring
        while ring and ring[0][0] <= began_s:
            _, step, slowest_s = ring.popleft()
            now_s = self._returned(step, slowest_s, now_s)
        self._coordinator_s += now_s - began_s
        self.next_s = now_s
        self._polled = True

    def _send_next(self) -> None:
        """Send the core's next step; without one, wait for the ring."""
        self._polled = False
        now_s = self.next_s
        self._admit(now_s)
        step = self._core.next_step()
        if step is None:
            self._free_s = now_s
            self.next_s = max(now_s, self._ring[0][0]) if self._ring else math.inf
            return
        costs = self._costs
        if isinstance(step, PrefillChunk):
            rows, wanted = step.stop - step.start, int(step.last)
            took = [cost.prefill_s(rows, step.start) for cost in costs]
        else:
            rows = wanted = len(step.sequences)
            positions = sum(step.positions)
            took = [cost.decode_s(rows, positions) for cost in costs]
            self._rows += rows
            self._batches += 1
        coordinator = self._replica.coordinator
        work_s = coordinator.send_s + coordinator.row_s * rows
        self._coordinator_s += work_s
        self._steps += 1
        self.next_s = self._free_s = now_s + work_s
        if self._loss is None:
            self._ring.append((self._back_s(took, rows, wanted), step, max(took)))

    def _back_s(self, took: list[float], rows: int, wanted: int) -> float:
        """When a step sent now comes back with ``wanted`` of its ``rows``; ``took`` holds seconds per stage cost."""
        at_s = self.next_s
        latency_s, byte_s = self._latency_s, self._byte_s
        link_free_s, stage_free_s = self._link_free_s, self._stage_free_s
        size = HEADER_BYTES + rows * self._replica.row_bytes
        for i, which in enumerate(self._cost_of):
            if link_free_s[i] > at_s:
                at_s = link_free_s[i]
            link_free_s[i] = at_s = at_s + size * byte_s[i]
            at_s += latency_s[i]
            if stage_free_s[i] > at_s:
                at_s = stage_free_s[i]
            stage_free_s[i] = at_s = at_s + took[which]
        for which, seconds in enumerate(took):
            self._worked_s[which] += seconds
        at_s = max(at_s, link_free_s[-1]) + (HEADER_BYTES + wanted * self._replica.row_bytes) * byte_s[-1]
        link_free_s[-1] = at_s
        return at_s + latency_s[-1]

    def _returned(self, step: Step, slowest_s: float, now_s: float) -> float:
        """Sample for the requests that are due; when that is done."""
        coordinator = self._replica.coordinator
        now_s += coordinator.receive_s
        if isinstance(step, PrefillChunk):
            sequences: tuple[int, ...] = (step.sequence,)
            positions = step.stop - step.start
        else:
            sequences, positions = step.sequences, 1
        due = self._core.returned(sequences, positions, (slowest_s,))
        if due:
            now_s += coordinator.head_s(len(sequences))
            for request, _ in due:
                self._token(request, now_s)
        return now_s

    def _token(self, request: Request, now_s: float) -> None:
        timing, job = request.timing, self._jobs[request.id]
        if job.stalled is not None:
            job.stalled.stalls_s.append(now_s - job.stalled.failure.at_s)
            job.stalled = None
        if timing.tokens:
            self._gaps_s.append(now_s - timing.last_token_s)
        timing.token(now_s)
        request.ids.append(job.text)
        self._core.sampled(request)
        if request.tokens == request.max_tokens:
            self._core.finish(request)
            self._finish(job, "answered")
            if not self._core.live:
                self._rest(now_s)

    def _admit(self, now_s: float) -> None:
        """Queue the requests that have arrived, and admit requests."""
        core = self._core
        while self._inbox:
            job = self._inbox.popleft()
            try:
                core.add(job.request)
            except EdgeppError:
                core.finish(job.request)
                self._finish(job, "refused")
        for request in core.admit():
            job = self._jobs[request.id]
            job.begun_s = now_s if job.begun_s is None else job.begun_s
            if not self._active:
                self._active, self._active_since_s = True, now_s
        core.freed()  # the modelled stages hold nothing

    def _finish(self, job: Job, fate: Fate) -> None:
        job.fate = fate
        self.outstanding -= 1
        del self._jobs[job.request.id]

    def _rest(self, now_s: float) -> None:
        if self._active:
            self._active_s += now_s - self._active_since_s
            self._active = False
