"""The simulation sends the very steps that the engine sends: both are given one clock and one set of costs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgepp.engine import core
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import Returned, RingEvent, Send, SendBatch, StageStats
from edgepp.engine.scheduler import MicroBatch, Scheduler, Step
from edgepp.errors import EdgeppError
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Array
from edgepp.simulator.costs import CoordinatorCost, LinkCost, Replica, StageCost
from edgepp.simulator.job import Job
from edgepp.simulator.simulate import simulate
from edgepp.simulator.workload import Arrival
from edgepp.wire.mailbox import Mailbox
from tests.builders.stages import stage_info
from tests.waiting import PATIENCE_S

COSTS = (StageCost(((1, 0.037), (8, 0.081)), 0.0031, 0.0007, 0.00001, 0.0), StageCost(((1, 0.029),), 0.0043))
HOP_S = 0.0013


class Recording(Scheduler):
    """Notes the steps that it names."""

    steps: list[Step]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.steps = Recording.latest = []

    latest: list[Step] = []  # noqa: RUF012 - of the scheduler made last

    def next_step(self) -> Step | None:
        step = super().next_step()
        if step is not None:
            self.steps.append(step)
        return step


class EmbeddingAndHead:
    """Hidden states are token ids, and the likeliest token is the one before."""

    positional = False
    vocabulary = 256

    def embed(self, tokens: Sequence[int], position: int | None = None, /) -> Array:
        return np.asarray(tokens, np.float32).reshape(-1, 1)

    def logits(self, hidden: Array) -> Array:
        return np.asarray(np.eye(256)[hidden[:, 0].astype(int)], np.float32)


class ClockRing:
    """A ring whose steps take what the costs say by a clock of its own; requests come by that clock too."""

    def __init__(self, replica: Replica, arrivals: Sequence[Arrival]) -> None:
        self.stages = tuple(
            stage_info(
                index=i,
                layers=LayerRange(i, i + 1),
                chunk=replica.chunk,
                context=replica.context,
                prefill_s=cost.prefill_s(replica.chunk, 0) / replica.chunk,
                decode_s=cost.decode_s(1, 0),
            )
            for i, cost in enumerate(replica.stages)
        )
        self.costs = replica.stages
        self.free_s = [0.0] * len(self.stages)
        self.now_s = 0.0
        self.events: deque[tuple[float, Returned]] = deque()
        self.coming = deque((a, Job.of(i, a).request) for i, a in enumerate(arrivals))
        self.requests: list[EngineRequest] = []
        self.began = threading.Event()
        self.engine: EngineLoop | None = None

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        pass

    def send(self, step: Send | SendBatch) -> None:
        rows, at_s = len(step.hidden), self.now_s
        if isinstance(step, SendBatch):
            took = [cost.decode_s(rows, sum(step.positions)) for cost in self.costs]
            sequences, back = step.sequences, step.hidden
        else:
            decodes = step.want == rows == 1 and isinstance(Recording.latest[-1], MicroBatch)
            took = [
                cost.decode_s(1, step.position) if decodes else cost.prefill_s(rows, step.position)
                for cost in self.costs
            ]
            sequences, back = (step.sequence,), step.hidden[rows - step.want :]
        for i, seconds in enumerate(took):
            at_s = max(at_s + HOP_S, self.free_s[i]) + seconds
            self.free_s[i] = at_s
        self.events.append((at_s + HOP_S, Returned(sequences, step.positions_each, back, tuple(took), 0.0)))

    def poll(self, timeout_s: float) -> list[RingEvent]:
        self.began.wait(PATIENCE_S)
        if timeout_s:
            next_s = [times_s for times_s, _ in list(self.events)[:1]] + [arrival.at_s for arrival, _ in self.coming]
            self.now_s = max(self.now_s, min(next_s, default=self.now_s))
        while self.coming and self.coming[0][0].at_s <= self.now_s:
            arrival, request = self.coming.popleft()
            assert self.engine is not None
            options = GenerateOptions(max_tokens=arrival.answer)
            self.requests.append(self.engine.submit(request.ids, options, arrival.owner))
        found: list[RingEvent] = []
        while self.events and self.events[0][0] <= self.now_s:
            found.append(self.events.popleft()[1])
        return found

    def free(self, sequence: int) -> None:
        pass

    def stage_stats(self) -> list[StageStats]:
        return []

    def close(self) -> None:
        pass


def by_engine(replica: Replica, arrivals: Sequence[Arrival]) -> tuple[list[Step], list[int], int]:
    """The steps that an engine sends, how many tokens of each prompt it reuses, and how often it preempts."""
    ring = ClockRing(replica, arrivals)
    engine = EngineLoop(lambda: EngineParts(ring, EmbeddingAndHead()), eos=frozenset(), budget=replica.budget)
    with engine:
        ring.engine = engine
        ring.began.set()
        for number, arrival in enumerate(arrivals):
            for _ in range(4000):
                if len(ring.requests) > number:
                    break
                threading.Event().wait(0.005)
            request = ring.requests[number]
            while not isinstance(event := request.events.get(timeout=PATIENCE_S), str):
                assert not isinstance(event, EdgeppError), event
            assert request.timing.tokens == arrival.answer
        steps = list(Recording.latest)
        return steps, [request.timing.reused for request in ring.requests], engine.load.preempted


asked = st.tuples(
    st.floats(0, 3),
    st.integers(0, 2),
    st.integers(2, 90),
    st.integers(1, 25),
    st.sampled_from([0, 0, 20]),
    st.integers(0, 2),
)


@settings(max_examples=40, deadline=None)
@example(2, 160, [(0.0, 0, 51, 3, 0, 0), (0.5, 1, 20, 1, 0, 0), (0.5, 1, 2, 20, 0, 0), (0.125, 0, 64, 1, 0, 0)])
@given(st.integers(1, 4), st.sampled_from([None, None, 160, 300]), st.lists(asked, min_size=1, max_size=12))
def test_the_simulation_sends_the_steps_of_the_engine(
    stages: int, budget: int | None, asks: list[tuple[float, int, int, int, int, int]]
) -> None:
    arrivals = sorted(
        (
            Arrival(at_s, f"owner-{owner}", prompt, answer, min(shared, prompt - 1), talk)
            for at_s, owner, prompt, answer, shared, talk in asks
        ),
        key=lambda arrival: arrival.at_s,
    )
    costs = tuple(COSTS[i % 2] for i in range(stages))
    links = (LinkCost(HOP_S),) * (stages + 1)
    replica = Replica(costs, links, CoordinatorCost(((1, 0.0),)), 4, chunk=32, context=4096, budget=budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "Scheduler", Recording)
        report = simulate([replica], arrivals)
        simulated = list(Recording.latest)
        steps, reused, preempted = by_engine(replica, arrivals)
    assert simulated == steps
    assert [outcome.reused for outcome in report.outcomes] == reused
    assert report.replicas[0].preempted == preempted
