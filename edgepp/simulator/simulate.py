"""Simulates several pipelines that share requests, event by event: the engine's core, a clock and modelled costs.

    replica = Replica.even(StageCost(((1, 0.02), (8, 0.05)), token_s=0.002), 4, LinkCost(5e-4), coordinator, 1152)
    report = simulate([replica] * 2, poisson(1000, 3.0, (50, 100), (50, 100)))

Admission, budget, preemption, prefixes, the order of steps and the lengths of chunks are those of the engine's own
code. Not modelled: guesses, jitter, cancelled requests, and the time to copy a prefix.
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
from edgepp.simulator.costs import CoordinatorCost, Cost, Curve, LinkCost, Replica, StageCost
from edgepp.simulator.job import Job, Loss
from edgepp.simulator.pipeline import SimPipeline
from edgepp.simulator.result import Outcome, Recovery, ReplicaUse, Report, Spread
from edgepp.simulator.workload import AfterLoss, Arrival, Failure, at_once, failures, poisson, read_trace

__all__ = [
    "ROUTING_POLICIES",
    "AfterLoss",
    "Arrival",
    "CoordinatorCost",
    "Cost",
    "Curve",
    "Failure",
    "LinkCost",
    "Outcome",
    "Recovery",
    "Replica",
    "ReplicaUse",
    "Report",
    "RoutingPolicy",
    "Spread",
    "StageCost",
    "at_once",
    "failures",
    "poisson",
    "read_trace",
    "simulate",
]

RoutingPolicy = Literal["round-robin", "least-loaded", "by-owner"]
"""Which pipeline gets a request: each in turn, the one with the fewest requests, or always the same for one owner."""
ROUTING_POLICIES: tuple[RoutingPolicy, ...] = get_args(RoutingPolicy)

_AFTER_LOSS = AfterLoss()


def simulate(
    replicas: Sequence[Replica],
    arrivals: Sequence[Arrival],
    losses: Sequence[Failure] = (),
    routing: RoutingPolicy = "least-loaded",
    after: AfterLoss = _AFTER_LOSS,
) -> Report:
    """Simulate ``arrivals`` at these pipelines. The same arguments give the same report.

    Raises:
        UsageError: there is no pipeline or no request, a failure names no stage, or ``routing`` is unknown.
    """
    if not replicas or not arrivals:
        raise UsageError("a simulation needs at least one pipeline and one request")
    if routing not in ROUTING_POLICIES:
        raise UsageError(f"the routing policy is one of {', '.join(ROUTING_POLICIES)}, not {routing!r:.40}")
    for loss in losses:
        if not (0 <= loss.replica < len(replicas) and 0 <= loss.stage < len(replicas[loss.replica].stages)):
            raise UsageError(f"there is no stage {loss.stage} of pipeline {loss.replica} that could fail")
        if not 0 <= loss.at_s < math.inf:
            raise UsageError(f"a stage fails at a time from 0 on, not at {loss.at_s}")
    return _Simulation(replicas, arrivals, losses, routing, after).run()


@dataclass(frozen=True)
class _Detection:
    """The detection of a pipeline's failure."""

    replica: int


@dataclass(frozen=True)
class _Restart:
    """The time at which a pipeline's stages should be loaded again."""

    replica: int


_Event = _Restart | Failure | _Detection | Job


class _Simulation:
    """The clock: handles events in the order of time; between two events, pipelines do not affect each other."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        arrivals: Sequence[Arrival],
        losses: Sequence[Failure],
        routing: RoutingPolicy,
        after: AfterLoss,
    ) -> None:
        self._routing = routing
        self._after = after
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
            self._at(failure.at_s, failure)
        for i in order:
            self._at(arrivals[i].at_s, in_order[i])
        self._wakes: list[tuple[float, int]] = []

    def run(self) -> Report:
        """Handle all events."""
        while self._events:
            now_s, _, event = heapq.heappop(self._events)
            self._advance(now_s)
            match event:
                case Job():
                    self._arrive(event, now_s)
                case Failure():
                    self._fail(event, now_s)
                case _Detection(replica=index):
                    self._detect(index, now_s)
                case _Restart(replica=index):
                    if self._pipelines[index].restart(now_s):
                        self._wake(index)
        self._advance(math.inf)
        return self._report()

    def _at(self, at_s: float, event: _Event) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), event))

    def _wake(self, index: int) -> None:
        next_s = self._pipelines[index].next_s
        if next_s < math.inf:
            heapq.heappush(self._wakes, (next_s, index))

    def _advance(self, until_s: float) -> None:
        """Simulate every pipeline until ``until_s``."""
        while self._wakes and self._wakes[0][0] < until_s:
            at_s, index = heapq.heappop(self._wakes)
            pipeline = self._pipelines[index]
            if pipeline.next_s == at_s:  # else an earlier entry has advanced it
                pipeline.advance(until_s)
                self._wake(index)

    def _fail(self, failure: Failure, now_s: float) -> None:
        pipeline, after = self._pipelines[failure.replica], self._after
        if pipeline.up_s > now_s:
            pipeline.prolong(max(now_s + after.detect_s, failure.returns_s) + after.reload_s)
            self._restart(pipeline)
        elif pipeline.fail(failure):
            self._wake(failure.replica)
            self._at(now_s + after.detect_s, _Detection(failure.replica))

    def _detect(self, index: int, now_s: float) -> None:
        pipeline = self._pipelines[index]
        loss = pipeline.lose(now_s, self._after)
        if loss is not None:
            self._losses.append(loss)
            self._restart(pipeline)

    def _restart(self, pipeline: SimPipeline) -> None:
        if pipeline.up_s < math.inf:
            self._at(pipeline.up_s, _Restart(pipeline.index))

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
        """The pipeline for a request: one that is not known to be down, else the one that is back first."""
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
        fates = [outcome.fate for outcome in outcomes]
        began_s = min(job.arrival.at_s for job in self._jobs)
        ended_s = max(job.request.timing.last_token_s for job in self._jobs)
        begun = [outcome for outcome in outcomes if outcome.tokens]
        return Report(
            seconds=max(0.0, ended_s - began_s),
            requests=len(outcomes),
            answered=fates.count("answered"),
            failed=fates.count("failed"),
            refused=fates.count("refused"),
            tokens=sum(outcome.tokens for outcome in outcomes),
            ttft_s=Spread.of([outcome.first_s for outcome in begun]),
            itl_s=Spread.of(self._gaps_s),
            queue_s=Spread.of([outcome.begun_s for outcome in begun]),
            replicas=tuple(pipeline.use() for pipeline in self._pipelines),
            recoveries=tuple(loss.recovery() for loss in self._losses),
            outcomes=outcomes,
        )
