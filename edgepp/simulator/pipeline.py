"""One simulated pipeline: the engine's own core with modelled costs.

``SimPipeline`` feeds ``EngineCore`` like the engine thread: take returned steps, admit requests, send one step or a
guess.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass

from edgepp.engine.core import EngineCore
from edgepp.engine.request import Request
from edgepp.engine.scheduler import MicroBatch, PrefillChunk, Step
from edgepp.engine.speculation import SpeculationCosts
from edgepp.errors import EdgeppError
from edgepp.simulator.costs import Replica
from edgepp.simulator.job import Job, Loss
from edgepp.simulator.result import ReplicaUse, Status
from edgepp.simulator.ring import SimRing
from edgepp.simulator.workload import Failure, RecoveryPolicy


@dataclass(frozen=True)
class _Traits:
    """A modelled stage as the core reads it: an ``engine.core.StageTraits``."""

    chunk: int
    context: int
    prefill_s: float
    decode_s: float
    rewinds: bool = True


class SimPipeline:
    """A pipeline and its coordinator. The caller reports arrivals and failures in the order of time."""

    def __init__(self, index: int, replica: Replica, gaps_s: array[float]) -> None:
        """``gaps_s`` collects the seconds between tokens."""
        self.index = index
        self.next_s = math.inf
        """Time of the next turn; infinite while there is nothing to do."""
        self.outstanding = 0
        """Number of requests that have not ended."""
        self.up_s = 0.0
        """Time from which requests can start; in the future while the pipeline is known to be down."""
        self._replica = replica
        self._gaps_s = gaps_s
        self._costs = list(dict.fromkeys(replica.stages))
        self._cost_of = [self._costs.index(cost) for cost in replica.stages]
        self._jobs: dict[int, Job] = {}
        self._inbox: deque[Job] = deque()
        self._worked_s = [0.0] * len(replica.stages)
        self._coordinator_s = self._active_s = 0.0
        self._rows = self._batches = self._preempted = 0
        self._loss: Loss | None = None
        self._reset(0.0)

    def _reset(self, now_s: float) -> None:
        """Start with empty caches and an empty ring."""
        replica = self._replica
        chunk = replica.chunk
        speeds = [
            _Traits(chunk, replica.context, cost.prefill_s(chunk, 0) / chunk, cost.decode_s(1, 0))
            for cost in replica.stages
        ]
        self._core: EngineCore[Request] = EngineCore(speeds, replica.budget)
        self._ring = SimRing(replica, now_s)
        self._guess_costs = SpeculationCosts(
            sum(speed.decode_s for speed in speeds) + sum(link.latency_s for link in replica.links),
            sum(speed.prefill_s for speed in speeds),
            max(speed.decode_s for speed in speeds),
        )
        self._free_s = self._active_since_s = now_s
        self._polled = self._active = False

    def submit(self, job: Job, now_s: float) -> None:
        """Accept a request."""
        job.replica = self.index
        self.outstanding += 1
        self._jobs[job.request.id] = job
        self._inbox.append(job)
        if now_s >= self.up_s:
            self.next_s = min(self.next_s, max(now_s, self._free_s))

    def advance(self, until_s: float) -> None:
        """Run all turns that start before ``until_s``."""
        while self.next_s < until_s:
            if not self._polled:
                self._poll()
                if self.next_s >= until_s:
                    return
            self._send_next()

    def fail(self, failure: Failure) -> bool:
        """A stage fails: steps in the ring are lost, and so are steps that are sent before the failure is detected.

        Returns whether this failure is to be detected; False if an earlier failure has not been detected yet.
        """
        if self._loss is not None:
            self._loss.returns_s = max(self._loss.returns_s, failure.returns_s)
            return False
        self._loss = Loss(failure, failure.returns_s)
        self._ring.lose()
        self.next_s = min(self.next_s, max(failure.at_s, self._free_s))
        return True

    def prolong(self, up_s: float) -> None:
        """A stage fails while the pipeline is known to be down."""
        self.up_s = max(self.up_s, up_s)

    def notice_loss(self, now_s: float, policy: RecoveryPolicy) -> Loss | None:
        """Detect the failure of a stage: every request fails, or resumes when the stages are back."""
        loss, self._loss = self._loss, None
        if loss is None:
            return None
        self.up_s = loss.up_s = max(now_s, loss.returns_s) + policy.reload_s
        self.next_s = math.inf
        self._end_active(now_s)
        live = list(self._core.live.values())
        self._inbox.clear()
        loss.lost_positions = sum(request.sent for request in live)
        resumes = policy.recover and self.up_s < math.inf
        if resumes:
            loss.resumed = len(live)
            for request in live:
                self._core.preempt(request)
                job = self._jobs[request.id]
                job.stalled = job.stalled or loss
        for job in sorted(self._jobs.values(), key=lambda job: job.request.id):
            if resumes:
                self._inbox.append(job)
            else:
                loss.failed += 1
                self._core.finish(job.request)
                self._finish(job, "failed")
        return loss

    def restart(self, now_s: float) -> bool:
        """Start again when all stages are loaded; return False if another stage has failed since."""
        if now_s < self.up_s:
            return False
        self._preempted += self._core.load.preempted
        self._worked_s = self._stages_worked_s
        self._reset(now_s)
        self.next_s = now_s if self._inbox else math.inf
        return True

    def use(self) -> ReplicaUse:
        """Shares of time for which stages and coordinator were busy."""
        active_s = self._active_s or 1.0
        return ReplicaUse(
            self._active_s,
            tuple(worked_s / active_s for worked_s in self._stages_worked_s),
            self._coordinator_s / active_s,
            self._rows,
            self._batches,
            self._preempted + self._core.load.preempted,
        )

    def _poll(self) -> None:
        """Take the steps that returned."""
        now_s = began_s = self.next_s
        while (trip := self._ring.take(began_s)) is not None:
            now_s = self._returned(trip.step, trip.slowest_s, now_s)
        self._coordinator_s += now_s - began_s
        self.next_s = now_s
        self._polled = True

    def _send_next(self) -> None:
        """Send the next step of the core; if there is none, wait for the ring."""
        self._polled = False
        now_s = self.next_s
        self._admit(now_s)
        step = self._core.next_step() or self._next_guess()
        if step is None:
            self._free_s = now_s
            back_s = self._ring.next_back_s
            self.next_s = math.inf if back_s is None else max(now_s, back_s)
            return
        if isinstance(step, PrefillChunk):
            rows, wanted = step.stop - step.start, int(step.last)
            costs_s = [cost.prefill_s(rows, step.start) for cost in self._costs]
        else:
            rows = wanted = len(step.sequences)
            positions = sum(step.positions)
            costs_s = [cost.decode_s(rows, positions) for cost in self._costs]
            self._rows += rows
            self._batches += 1
            if step.guesses and rows == 1:
                self._job_of(step.sequences[0]).speculation.sent_s = now_s
        coordinator = self._replica.coordinator
        work_s = coordinator.send_s + coordinator.row_s * rows
        self._coordinator_s += work_s
        self.next_s = self._free_s = now_s + work_s
        if self._loss is None:
            self._ring.send(step, self.next_s, rows, wanted, [costs_s[which] for which in self._cost_of])

    def _next_guess(self) -> MicroBatch | None:
        """The guess to send now, as a step of its own behind the others of its request; None where there is none."""
        for request in self._core.guessable():
            job = self._jobs[request.id]
            token = job.guess(self._guess_costs)
            if token is not None:
                position = len(request.ids) + len(request.guesses)
                self._core.guessed(request, token)
                return MicroBatch((request.sequence,), (position,), guesses=False)
        return None

    def _job_of(self, sequence: int) -> Job:
        return self._jobs[self._core.live[sequence].id]

    @property
    def _stages_worked_s(self) -> list[float]:
        """Seconds for which each stage has computed since the start."""
        return [before_s + since_s for before_s, since_s in zip(self._worked_s, self._ring.worked_s, strict=True)]

    def _returned(self, step: Step, slowest_s: float, now_s: float) -> float:
        """Sample a token for every sequence that is due; return the time when that is done."""
        coordinator = self._replica.coordinator
        now_s += coordinator.receive_s
        if isinstance(step, PrefillChunk):
            sequences: tuple[int, ...] = (step.sequence,)
            positions = step.stop - step.start
        else:
            sequences, positions = step.sequences, 1
            if len(sequences) == 1:
                self._guess_costs.observe_stages((slowest_s,))
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
        job.learn(self._guess_costs, now_s)
        self._core.sampled(request)
        if request.tokens == request.max_tokens:
            self._core.finish(request)
            self._finish(job, "answered")
            if not self._core.live:
                self._end_active(now_s)

    def _admit(self, now_s: float) -> None:
        """Queue the requests that arrived, and admit requests."""
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
        core.freed()  # modelled stages keep no caches to free

    def _finish(self, job: Job, status: Status) -> None:
        job.status = status
        self.outstanding -= 1
        del self._jobs[job.request.id]

    def _end_active(self, now_s: float) -> None:
        if self._active:
            self._active_s += now_s - self._active_since_s
            self._active = False
