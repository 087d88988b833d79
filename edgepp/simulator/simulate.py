"""Event-by-event simulation of several pipelines that share the requests.

    replica = Replica.even(StageCost(((1, 0.02), (8, 0.05)), token_s=0.002), 4, LinkCost(5e-4), coordinator, 1152)
    report = simulate([replica] * 2, poisson(1000, 3.0, (50, 100), (50, 100)))

The engine's own core decides admission, budget, preemption, prefix reuse, the order of steps and the length of chunks,
and its ``SpeculationControl`` how many guesses travel; whether a guess is right comes from the acceptance of its
request, and time from modelled costs. Several guesses in one step, jitter, cancelled requests and the time to copy a
prefix are left out.
"""

from __future__ import annotations

import heapq
import itertools
import math
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edgepp.errors import UsageError
from edgepp.simulator.costs import Replica
from edgepp.simulator.job import Job, Loss
from edgepp.simulator.pipeline import SimPipeline
from edgepp.simulator.result import Distribution, Report
from edgepp.simulator.workload import Arrival, Failure, RecoveryPolicy

RoutingPolicy = Literal["round-robin", "least-loaded", "by-owner"]
"""Pipeline of the next request: each in turn, the one with the fewest requests, or always the same for one owner."""
ROUTING_POLICIES: tuple[RoutingPolicy, ...] = get_args(RoutingPolicy)


_DEFAULT_RECOVERY = RecoveryPolicy()


def simulate(
    replicas: Sequence[Replica],
    arrivals: Sequence[Arrival],
    losses: Sequence[Failure] = (),
    routing: RoutingPolicy = "least-loaded",
    recovery: RecoveryPolicy = _DEFAULT_RECOVERY,
) -> Report:
    """Simulate ``arrivals`` on pipelines like ``replicas``. The same arguments give the same report.

    Raises:
        UsageError: a failure names no stage, or there is no pipeline or no request.
    """
    if not replicas or not arrivals:
        raise UsageError("a simulation needs at least one pipeline and one request")
    if routing not in ROUTING_POLICIES:
        raise UsageError(f"the routing policy is one of {', '.join(ROUTING_POLICIES)}, not {routing!r:.40}")
    for loss in losses:
        if not (0 <= loss.replica < len(replicas) and 0 <= loss.stage < len(replicas[loss.replica].stages)):
            raise UsageError(f"there is no stage {loss.stage} of pipeline {loss.replica} that could fail")
        if not 0 <= loss.at_s < math.inf:
            raise UsageError(f"a stage fails at a time of 0 or later, not at {loss.at_s}")
    return _Simulation(replicas, arrivals, losses, routing, recovery).run()


@dataclass(frozen=True)
class _Noticed:
    """The failure of a pipeline is detected."""

    replica: int


@dataclass(frozen=True)
class _Restart:
    """All stages of a pipeline may be loaded again."""

    replica: int


_Event = _Restart | Failure | _Noticed | Job


class _Simulation:
    """The clock. Between two events (arrival, failure, detection, restart) the pipelines are independent."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        arrivals: Sequence[Arrival],
        losses: Sequence[Failure],
        routing: RoutingPolicy,
        recovery: RecoveryPolicy,
    ) -> None:
        self._routing = routing
        self._recovery = recovery
        self._gaps_s: array[float] = array("d")
        self._replicas = replicas
        self._pipelines = [SimPipeline(i, replica, self._gaps_s) for i, replica in enumerate(replicas)]
        order = sorted(range(len(arrivals)), key=lambda i: arrivals[i].at_s)
        in_order = {i: Job.of(number, arrivals[i]) for number, i in enumerate(order)}
        self._jobs = [in_order[i] for i in range(len(arrivals))]
        self._losses: list[Loss] = []
        self._turn = 0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, _Event]] = []
        for failure in losses:
            self._schedule(failure.at_s, failure)
        for i in order:
            self._schedule(arrivals[i].at_s, in_order[i])
        self._wakes: list[tuple[float, int]] = []

    def run(self) -> Report:
        """Process all events."""
        while self._events:
            now_s, _, event = heapq.heappop(self._events)
            self._advance(now_s)
            match event:
                case Job():
                    self._arrive(event, now_s)
                case Failure():
                    self._fail(event, now_s)
                case _Noticed(replica=index):
                    self._notice(index, now_s)
                case _Restart(replica=index):
                    if self._pipelines[index].restart(now_s):
                        self._wake(index)
        self._advance(math.inf)
        return self._report()

    def _schedule(self, at_s: float, event: _Event) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), event))

    def _wake(self, index: int) -> None:
        next_s = self._pipelines[index].next_s
        if next_s < math.inf:
            heapq.heappush(self._wakes, (next_s, index))

    def _advance(self, until_s: float) -> None:
        """Advance every pipeline to ``until_s``."""
        while self._wakes and self._wakes[0][0] < until_s:
            at_s, index = heapq.heappop(self._wakes)
            pipeline = self._pipelines[index]
            if pipeline.next_s == at_s:  # else it was woken earlier, for another entry
                pipeline.advance(until_s)
                self._wake(index)

    def _fail(self, failure: Failure, now_s: float) -> None:
        pipeline, recovery = self._pipelines[failure.replica], self._recovery
        if pipeline.up_s > now_s:
            pipeline.prolong(max(now_s + recovery.detect_s, failure.returns_s) + recovery.reload_s)
            self._restart(pipeline)
        elif pipeline.fail(failure):
            self._wake(failure.replica)
            self._schedule(now_s + recovery.detect_s, _Noticed(failure.replica))

    def _notice(self, index: int, now_s: float) -> None:
        pipeline = self._pipelines[index]
        loss = pipeline.notice_loss(now_s, self._recovery)
        if loss is not None:
            self._losses.append(loss)
            self._restart(pipeline)

    def _restart(self, pipeline: SimPipeline) -> None:
        if pipeline.up_s < math.inf:
            self._schedule(pipeline.up_s, _Restart(pipeline.index))

    def _arrive(self, job: Job, now_s: float) -> None:
        pipeline = self._choose(job.arrival.owner, now_s)
        if pipeline is None or not self._fits(job.arrival, self._replicas[pipeline.index]):
            return
        before_s = pipeline.next_s
        pipeline.submit(job, now_s)
        if pipeline.next_s != before_s:
            self._wake(pipeline.index)

    @staticmethod
    def _fits(arrival: Arrival, replica: Replica) -> bool:
        needed = arrival.prompt + arrival.answer
        return needed <= replica.context and (replica.budget is None or needed <= replica.budget)

    def _choose(self, owner: str, now_s: float) -> SimPipeline | None:
        """Pipeline of a request: one that is not known to be down, or the one that is back first if all are down."""
        up = [pipeline for pipeline in self._pipelines if pipeline.up_s <= now_s]
        if not up:
            first = min(self._pipelines, key=lambda pipeline: pipeline.up_s)
            return first if first.up_s < math.inf else None
        match self._routing:
            case "round-robin":
                self._turn += 1
                return up[self._turn % len(up)]
            case "least-loaded":
                return min(up, key=lambda pipeline: pipeline.outstanding)
            case "by-owner":
                start = zlib.crc32(owner.encode())
                return min(up, key=lambda pipeline: (pipeline.index - start) % len(self._pipelines))

    def _report(self) -> Report:
        outcomes = tuple(job.outcome() for job in self._jobs)
        statuses = [outcome.status for outcome in outcomes]
        began_s = min(job.arrival.at_s for job in self._jobs)
        ended_s = max(job.request.timing.last_token_s for job in self._jobs)
        begun = [outcome for outcome in outcomes if outcome.tokens]
        return Report(
            seconds=max(0.0, ended_s - began_s),
            requests=len(outcomes),
            answered=statuses.count("answered"),
            failed=statuses.count("failed"),
            refused=statuses.count("refused"),
            tokens=sum(outcome.tokens for outcome in outcomes),
            ttft_s=Distribution.of([outcome.first_s for outcome in begun]),
            itl_s=Distribution.of(self._gaps_s),
            queue_s=Distribution.of([outcome.begun_s for outcome in begun]),
            replicas=tuple(pipeline.use() for pipeline in self._pipelines),
            recoveries=tuple(loss.recovery() for loss in self._losses),
            outcomes=outcomes,
        )
