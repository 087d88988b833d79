"""The simulation sends the very steps that the engine sends: both are given one clock and one set of costs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgepp.engine import core
from edgepp.engine.engine_request import EngineRequest
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.loop import EngineLoop
from edgepp.engine.request import GenerateOptions, Request
from edgepp.engine.ring import Returned, RingEvent, Send, SendBatch, StageStats
from edgepp.engine.scheduler import MicroBatch, Scheduler, Step
from edgepp.engine.speculation import GuessPlan, SpeculationControl
from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array
from edgepp.simulator.costs import CoordinatorCost, LinkCost, Replica, StageCost
from edgepp.simulator.job import Job, guessed
from edgepp.simulator.simulate import simulate
from edgepp.simulator.workload import Arrival
from edgepp.wire.mailbox import Mailbox
from tests.builders.properties import examples
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

    def guessed(self, request: Request) -> None:
        super().guessed(request)
        position = len(request.ids) + len(request.guesses)
        self.steps.append(MicroBatch((request.sequence,), (position,), guesses=False))


class EmbeddingAndHead:
    """Hidden states are token ids, and the likeliest token is the one before."""

    positional = False
    vocabulary = 256

    def embed(self, tokens: Sequence[int], position: int | None = None, /) -> Array:
        return np.asarray(tokens, np.float32).reshape(-1, 1)

    def logits(self, hidden: Array) -> Array:
        return np.asarray(np.eye(256)[hidden[:, 0].astype(int)], np.float32)


@dataclass(eq=False)
class Frame:
    """A step with the times that it takes, in seconds by the ring's clock."""

    sent_s: float
    took: list[float]
    answer: Returned
    positions: tuple[int, ...]
    at_s: float = 0.0
    voided_by: Frame | None = None
    answered: bool = False

    def voids(self, earlier: Frame) -> bool:
        """Whether an earlier frame is a guess at the position of this frame or later, of the same sequence."""
        if earlier.answered or earlier.voided_by is not None or len(earlier.answer.sequences) > 1:
            return False
        starts = dict(zip(self.answer.sequences, self.positions, strict=True))
        start = starts.get(earlier.answer.sequences[0])
        return start is not None and start <= earlier.positions[0]


class ReplayingDraft:
    """The guesses that the simulation makes for the same text, each the only one of its call."""

    def __init__(self, acceptance: float, _owner: str) -> None:
        self.acceptance = acceptance

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        text = next(token for token in ids if token)  # after the shared prefix of zeros
        return [guessed(text, len(ids), self.acceptance)]

    def close(self) -> None:
        pass


class ClockRing:
    """A ring whose steps take what the costs say by a clock of its own; requests come by that clock too."""

    overlaps = True

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
        self.now_s = 0.0
        self.frames: list[Frame] = []
        self.coming = deque((a, Job.of(i, a).request) for i, a in enumerate(arrivals))
        self.requests: list[EngineRequest] = []
        self.began = threading.Event()
        self.engine: EngineLoop | None = None

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        pass

    def send(self, step: Send | SendBatch) -> None:
        rows = len(step.hidden)
        if isinstance(step, SendBatch):
            took = [cost.decode_s(rows, sum(step.positions)) for cost in self.costs]
            sequences, back, positions = step.sequences, step.hidden, step.positions
        else:
            decodes = step.want == rows == 1 and isinstance(Recording.latest[-1], MicroBatch)
            took = [
                cost.decode_s(1, step.position) if decodes else cost.prefill_s(rows, step.position)
                for cost in self.costs
            ]
            sequences, back, positions = (step.sequence,), step.hidden[rows - step.want :], (step.position,)
        frame = Frame(self.now_s, took, Returned(sequences, step.positions_each, back, tuple(took), 0.0), positions)
        for earlier in self.frames:
            if frame.voids(earlier):
                earlier.voided_by = frame
        self.frames.append(frame)
        self.schedule()

    def schedule(self) -> None:
        """Compute the times of all frames from the first one on; a frame that waits when it is void is dropped."""
        going = self.frames
        for frame in going:
            frame.at_s = frame.sent_s
        for stage in range(len(self.stages)):
            free_s, kept = 0.0, []
            for frame in going:
                frame.at_s += HOP_S
            for frame in going:
                start_s = max(frame.at_s, free_s)
                if frame.voided_by is None or start_s < frame.voided_by.at_s:
                    frame.at_s = free_s = start_s + frame.took[stage]
                    kept.append(frame)
            going = kept

    def poll(self, timeout_s: float) -> list[RingEvent]:
        self.began.wait(PATIENCE_S)
        awaited = [frame for frame in self.frames if not frame.answered and frame.voided_by is None]
        if timeout_s:
            next_s = [frame.at_s + HOP_S for frame in awaited[:1]] + [arrival.at_s for arrival, _ in self.coming]
            self.now_s = max(self.now_s, min(next_s, default=self.now_s))
        while self.coming and self.coming[0][0].at_s <= self.now_s:
            arrival, request = self.coming.popleft()
            assert self.engine is not None
            options = GenerateOptions(max_tokens=arrival.answer)
            self.requests.append(self.engine.submit(request.ids, options, arrival.owner))
        back = [frame for frame in awaited if frame.at_s + HOP_S <= self.now_s]
        for frame in back:
            frame.answered = True
        return [frame.answer for frame in back]

    def free(self, sequence: int) -> None:
        pass

    def stage_stats(self) -> list[StageStats]:
        return []

    def close(self) -> None:
        pass


def by_engine(
    replica: Replica, arrivals: Sequence[Arrival], acceptance: float | None
) -> tuple[list[Step], list[tuple[int, int, int]], int]:
    """The steps that an engine sends, and how often it preempts; for each request, counts of tokens.

    These are the reused tokens of the prompt, the guesses, and the right ones.
    """
    ring = ClockRing(replica, arrivals)
    draft = None if acceptance is None else partial(ReplayingDraft, acceptance)
    parts = EngineParts(ring, EmbeddingAndHead(), draft)
    engine = EngineLoop(lambda: parts, eos=frozenset(), budget=replica.budget)
    with engine:
        ring.engine = engine
        ring.began.set()
        for number, arrival in enumerate(arrivals):
            for _ in range(int(PATIENCE_S / 0.005)):
                if len(ring.requests) > number:
                    break
                threading.Event().wait(0.005)
            request = ring.requests[number]
            while not isinstance(event := request.events.get(timeout=PATIENCE_S), str):
                assert not isinstance(event, EdgeppError), event
            assert request.timing.tokens == arrival.answer
        steps = list(Recording.latest)
        timings = [request.timing for request in ring.requests]
        counts = [(timing.reused, timing.guessed, timing.right) for timing in timings]
        return steps, counts, engine.load.preempted


asked = st.tuples(
    st.floats(0, 3),
    st.integers(0, 2),
    st.integers(2, 90),
    st.integers(1, 25),
    st.sampled_from([0, 0, 20]),
    st.integers(0, 2),
)


@settings(max_examples=examples(60))
@example(
    2, 160, None, 1, [(0.0, 0, 51, 3, 0, 0), (0.5, 1, 20, 1, 0, 0), (0.5, 1, 2, 20, 0, 0), (0.125, 0, 64, 1, 0, 0)]
)
@example(2, None, 0.7, 1, [(0.0, 0, 20, 25, 0, 0)])
@example(3, None, 0.5, 4, [(0.0, 0, 20, 25, 0, 0), (0.7, 1, 20, 25, 0, 0)])
@given(
    st.integers(1, 4),
    st.sampled_from([None, None, 160, 300]),
    st.sampled_from([None, 0.0, 0.5, 0.8, 1.0]),
    st.integers(1, 5),
    st.lists(asked, min_size=1, max_size=12),
)
def test_the_simulation_sends_the_steps_of_the_engine(
    stages: int,
    budget: int | None,
    acceptance: float | None,
    behind: int,
    asks: list[tuple[float, int, int, int, int, int]],
) -> None:
    arrivals = sorted(
        (
            Arrival(at_s, f"owner-{owner}", prompt, answer, min(shared, prompt - 1), talk, acceptance)
            for at_s, owner, prompt, answer, shared, talk in asks
        ),
        key=lambda arrival: arrival.at_s,
    )
    costs = tuple(COSTS[i % 2] for i in range(stages))
    links = (LinkCost(HOP_S),) * (stages + 1)
    replica = Replica(costs, links, CoordinatorCost(((1, 0.0),)), 4, chunk=32, context=4096, budget=budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "Scheduler", Recording)
        patch.setattr(SpeculationControl, "plan", lambda *_, **__: GuessPlan(behind=behind))  # the engine has no clock
        report = simulate([replica], arrivals)
        simulated = list(Recording.latest)
        steps, counts, preempted = by_engine(replica, arrivals, acceptance)
    assert simulated == steps
    assert [(outcome.reused, outcome.guessed, outcome.right) for outcome in report.outcomes] == counts
    assert report.replicas[0].preempted == preempted
