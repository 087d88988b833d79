"""The engine core alone, without ring, model or thread: the test decides when steps come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgepp.engine import ledger
from edgepp.engine.core import EngineCore
from edgepp.engine.request import Request
from edgepp.engine.request_status import TRANSITIONS, RequestStatus
from edgepp.engine.scheduler import MicroBatch, PrefillChunk, Step
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError, LocalProtocolError
from tests.builders.core_requests import make_request

TEXTS = ([n % 7 for n in range(120)], [n % 5 for n in range(120)], [n % 7 for n in range(40)] + [9] * 80)
ALLOWED = {(status, then) for (status, _), then in TRANSITIONS.items()}


@dataclass(frozen=True)
class Speed:
    chunk: int = 32
    context: int = 400
    prefill_s: float = 0.004
    decode_s: float = 0.05
    rewinds: bool = True


class Watched(Request):
    """A request that checks each change of its status against the table."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "status" and "status" in self.__dict__:
            assert (self.status, value) in ALLOWED
        super().__setattr__(name, value)


def watched(number: int, ids: Sequence[int], max_tokens: int, owner: str) -> Watched:
    return Watched(
        id=number, owner=owner, ids=list(ids), prompt_tokens=len(ids), max_tokens=max_tokens, timing=Timing(0.0)
    )


class Side:
    """A core and modelled stages: the positions of each sequence, and the steps in the ring."""

    def __init__(self, stages: int, budget: int | None, *, rewinds: bool, eager: bool) -> None:
        self.core: EngineCore[Request] = EngineCore([Speed(rewinds=rewinds)] * stages, budget)
        self.budget = budget
        self.eager = eager
        self.requests: dict[int, Request] = {}
        self.refused: set[int] = set()
        self.ring: deque[Step] = deque()
        self.held: dict[int, int] = {}

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        try:
            self.core.add(request)
        except EdgeppError:
            self.refused.add(request.id)
            self.core.finish(request)

    def look(self) -> list[int]:
        """Admit; the ids of those that begin. ``eager``: also where the core knows that nothing can have changed."""
        first = min(self.core.live.values(), key=lambda request: request.turn, default=None)
        if self.eager:
            self.core._changed = True
        admitted = self.core.admit()
        for request in admitted:
            assert request.sent < len(request.ids)
            assert request.sent <= self.held.get(request.source or request.sequence, 0)
            assert all(request.sequence not in sequences_of(step) for step in self.ring), "steps of another are there"
            self.held[request.sequence] = request.sent
        sources = {request.source for request in self.core.live.values()}
        for sequence in self.core.freed():
            assert sequence not in self.core.live
            assert sequence not in sources
            self.held.pop(sequence, None)
        assert first is None or first.status is not RequestStatus.PREEMPTED, "the oldest request gave way"
        being_copied = {request.source for request in self.core.live.values()} - self.core.live.keys()
        total = sum(positions for sequence, positions in self.held.items() if sequence not in being_copied)
        assert self.budget is None or total <= self.budget
        return [request.id for request in admitted]

    def send(self, guesses: int) -> Step | None:
        step = self.core.next_step()
        if step is None:
            return None
        self.ring.append(step)
        if isinstance(step, PrefillChunk):
            self.held[step.sequence] = step.stop
            return step
        for sequence, position in zip(step.sequences, step.positions, strict=True):
            self.held[sequence] = position + 1
        if step.guesses and len(step.sequences) == 1:
            request = self.core.live[step.sequences[0]]
            room = max(0, min(guesses, request.max_tokens - request.tokens - 1))
            self.core.speculate(request, (0,) * room)
        return step

    def give_back(self, right: int, *, ends: bool) -> None:
        """The oldest step comes round; so many guesses of a lone request were ``right``; ``ends``: the answer does."""
        step = self.ring.popleft()
        sequences = sequences_of(step)
        positions = step.stop - step.start if isinstance(step, PrefillChunk) else 1
        for request, rows in self.core.returned(sequences, positions, (0.05,)):
            assert rows.stop - rows.start == 1 + len(request.guesses)
            if ends:
                self.core.finish(request)
                continue
            tokens = min(1 + min(right, len(request.guesses)), request.max_tokens - request.tokens)
            request.ids += [at % 7 for at in range(len(request.ids), len(request.ids) + tokens)]
            self.core.sampled(request)
            self.held[request.sequence] = request.sent
            if request.tokens == request.max_tokens:
                self.core.finish(request)

    def live(self, which: int) -> Request | None:
        numbers = sorted(self.core.live)
        return self.core.live[numbers[which % len(numbers)]] if numbers else None


def sequences_of(step: Step) -> tuple[int, ...]:
    return (step.sequence,) if isinstance(step, PrefillChunk) else step.sequences


class Life(RuleBasedStateMachine):
    """Random events; a second core that checks everything before every step must do exactly the same."""

    @initialize(
        stages=st.integers(1, 4),
        budget=st.sampled_from([None, 130, 170, 300]),
        rewinds=st.sampled_from([True, True, True, False]),
    )
    def begin(self, stages: int, budget: int | None, rewinds: bool) -> None:
        self.sides = [Side(stages, budget, rewinds=rewinds, eager=eager) for eager in (False, True)]
        self.number = 0

    @rule(
        text=st.sampled_from(TEXTS),
        prompt=st.integers(1, 80),
        own=st.integers(0, 10),
        tokens=st.integers(1, 30),
        owner=st.sampled_from("abc"),
    )
    def add(self, text: list[int], prompt: int, own: int, tokens: int, owner: str) -> None:
        self.number += 1
        for side in self.sides:
            side.add(watched(self.number, text[:prompt] + [50 + self.number] * own, tokens, owner))

    @rule(guesses=st.sampled_from([0, 0, 1, 4]))
    def step(self, guesses: int) -> None:
        admitted = [side.look() for side in self.sides]
        sent = [side.send(guesses) for side in self.sides]
        assert admitted[0] == admitted[1]
        assert sent[0] == sent[1]

    @rule(right=st.integers(0, 4), ends=st.sampled_from([False, False, False, True]))
    def give_back(self, right: int, ends: bool) -> None:
        for side in self.sides:
            if side.ring:
                side.give_back(right, ends=ends)

    @rule(turns=st.integers(1, 60), guesses=st.sampled_from([0, 4]), right=st.integers(0, 4))
    def go_on(self, turns: int, guesses: int, right: int) -> None:
        for turn in range(turns):
            self.step(guesses)
            if turn % 3:
                self.give_back(right, ends=False)

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        for side in self.sides:
            if side.requests:
                request = side.requests[1 + which % len(side.requests)]
                ended = request.status is RequestStatus.FINISHED
                assert side.core.cancel(request) is not ended

    @rule(which=st.integers(0, 99))
    def preempt(self, which: int) -> None:
        for side in self.sides:
            if (request := side.live(which)) is not None:
                side.core.preempt(request)

    @rule(which=st.integers(0, 99))
    def fail(self, which: int) -> None:
        for side in self.sides:
            if (request := side.live(which)) is not None:
                again = side.core.failed(request.sequence)
                assert (again is request) or request.status is RequestStatus.PREEMPTED
                if again is not None:
                    side.core.finish(again, keep=False)

    @invariant()
    def everyone_is_in_one_place(self) -> None:
        for side in getattr(self, "sides", []):
            live, waiting = side.core.live, side.core.waiting
            for request in side.requests.values():
                at = [
                    request is live.get(request.sequence),
                    request in waiting,
                    request.status is RequestStatus.FINISHED,
                ]
                assert sum(at) == 1
                if at[1]:
                    assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
                    assert (request.sequence, request.sent, request.steps_in_ring) == (0, 0, 0)
            states = [[(one.status, one.sent, one.tokens) for one in s.requests.values()] for s in self.sides]
            assert states[0] == states[1]

    def teardown(self) -> None:
        for side in getattr(self, "sides", []):
            for _ in range(20_000):
                side.look()
                if side.send(0) is None:
                    if not side.ring:
                        break
                    side.give_back(0, ends=False)
            assert not side.core.live
            assert not side.core.waiting
            assert all(request.status is RequestStatus.FINISHED for request in side.requests.values())
            side.look()
            assert sum(side.held.values()) == side.core.load.kept


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


def run(side: Side) -> Iterator[None]:
    """Run step by step until every request has ended."""
    while side.core.live or side.core.waiting:
        while side.look():
            continue
        yield
        if side.send(0) is None:
            side.give_back(0, ends=False)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 3))
def test_owners_share_a_short_budget_equally(owners: int, slots: int, stages: int) -> None:
    """Also where one owner has taken everything first: every waiting owner holds its share, less one request."""
    prompt, answer = 20, 10
    share = slots * (prompt + answer)
    side = Side(stages, owners * share, rewinds=True, eager=False)
    number = 0
    for owner in range(owners):
        for _ in range(4 * slots):
            number += 1
            side.add(make_request(number, [number] * prompt, answer, owner=f"owner-{owner}"))
        if owner == 0:
            for _ in range(5):
                side.look()
                side.send(0)
    for _ in run(side):
        held: dict[str, int] = {}
        for request in side.core.live.values():
            held[request.owner] = held.get(request.owner, 0) + len(request.ids)
        for waiting in side.core.waiting:
            assert held.get(waiting.owner, 0) >= share - 2 * (prompt + answer)
    assert all(request.status is RequestStatus.FINISHED for request in side.requests.values())


def test_a_change_of_shares_admits_a_request_at_once() -> None:
    """An owner may not reduce another below its own share; one token more, and it may."""
    core: EngineCore[Request] = EngineCore([Speed(chunk=128)], 300)
    first, greedy = make_request(1, [1] * 40, 200, "ann"), make_request(2, [2] * 115, 60, "ann")
    small, waits = make_request(3, [3] * 41, 20, "bob"), make_request(4, [4] * 41, 64, "bob")
    for request in (first, greedy, small, waits):
        core.add(request)
    assert core.admit() == [first, small, greedy]
    for _ in range(3):
        assert isinstance(core.next_step(), PrefillChunk)
    assert core.admit() == []
    assert core.returned([first.sequence], 40, [0.1]) == [(first, slice(0, 1))]
    first.ids.append(5)
    core.sampled(first)
    assert core.admit() == [waits]
    assert greedy.status is RequestStatus.PREEMPTED


def begun(core: EngineCore[Request], ids: Sequence[int] = (1, 2, 3, 4)) -> Request:
    """A request whose whole prompt is in the ring."""
    request = make_request(len(core.live) + 1, ids)
    core.add(request)
    assert core.admit() == [request]
    assert isinstance(core.next_step(), PrefillChunk)
    return request


def test_a_request_goes_from_the_queue_to_its_end() -> None:
    core: EngineCore[Request] = EngineCore([Speed()], None)
    request = make_request(1, [1, 2, 3, 4])
    assert request.status is RequestStatus.WAITING
    core.add(request)
    core.admit()
    assert request.status is RequestStatus.PREFILL
    assert core.next_step() == PrefillChunk(1, 0, 4, last=True)
    assert request.status is RequestStatus.PREFILL_IN_FLIGHT
    assert core.returned([1], 4, [0.1]) == [(request, slice(0, 1))]
    request.ids.append(5)
    core.sampled(request)
    assert request.status is RequestStatus.READY
    assert core.next_step() == MicroBatch((1,), (4,), guesses=True)
    assert request.status is RequestStatus.DECODE_IN_FLIGHT
    core.speculate(request, (6, 7))
    assert core.returned([1], 3, [0.1]) == [(request, slice(0, 3))]
    request.ids += [6, 8]
    core.sampled(request)
    assert core.next_step() == MicroBatch((1,), (6,), guesses=True)
    core.finish(request)
    assert request.status is RequestStatus.FINISHED
    assert core.load.live == core.load.waiting == 0


def test_an_unlisted_transition_is_refused() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=2)], None)
    request = begun(core)
    with pytest.raises(LocalProtocolError, match="SAMPLED cannot happen to request 1, which is PREFILL"):
        core.sampled(request)
    core.finish(request)
    for cannot in (core.finish, core.preempt, core.add, core.sampled):
        with pytest.raises(LocalProtocolError, match="cannot happen to request 1, which is FINISHED"):
            cannot(request)
    assert not core.cancel(request)


def test_every_status_can_finish_and_every_live_one_can_be_preempted() -> None:
    events = {status: {event.name for one, event in TRANSITIONS if one is status} for status in RequestStatus}
    assert not events.pop(RequestStatus.FINISHED)
    assert all("FINISHED" in found for found in events.values())
    still = {status for status, found in events.items() if "PREEMPTED" not in found}
    assert still == {RequestStatus.WAITING, RequestStatus.PREEMPTED}


def test_a_preempted_request_continues_from_its_tokens() -> None:
    core: EngineCore[Request] = EngineCore([Speed()], None)
    request = begun(core)
    core.returned([1], 4, [0.1])
    request.ids.append(5)
    core.sampled(request)
    core.preempt(request)
    assert request.status is RequestStatus.PREEMPTED
    assert core.waiting == (request,)
    assert core.freed() == [1]
    assert core.admit() == [request]
    assert core.next_step() == PrefillChunk(2, 0, 5, last=True)


def test_another_core_takes_over_the_requests_of_lost_stages() -> None:
    lost: EngineCore[Request] = EngineCore([Speed()], None)
    request = begun(lost)
    lost.preempt(request)
    core: EngineCore[Request] = EngineCore([Speed()], None)
    core.add(request)
    assert request.status is RequestStatus.PREEMPTED
    assert core.admit() == [request]


def test_suspended_requests_go_on_with_what_the_next_stages_hold() -> None:
    core: EngineCore[Request] = EngineCore([Speed(), Speed()], None)
    whole, partly, lost, new = (begun(core, (10 * n, 2, 3, 4)) for n in (1, 2, 3, 4))
    for request in (whole, partly, lost):
        core.returned([request.sequence], 4, [0.1, 0.1])
        request.ids.append(5)
        core.sampled(request)
    sequences = [request.sequence for request in (whole, partly, lost, new)]
    assert {one.sequence: one.positions for one in core.suspend()} == dict.fromkeys(sequences[:3], 4)
    assert {request.status for request in core.waiting} == {RequestStatus.PREEMPTED}
    assert not core.in_flight
    core.resume([Speed()], {sequences[0]: 9, sequences[1]: 3, sequences[3]: 4})
    assert core.freed() == [sequences[2]]
    assert core.admit() == [whole, partly, lost, new]
    assert [request.status for request in (whole, partly)] == [RequestStatus.READY, RequestStatus.PREFILL]
    assert [(one.sequence, one.sent) for one in (whole, partly)] == [(sequences[0], 4), (sequences[1], 3)]
    assert {lost.sequence, new.sequence}.isdisjoint(sequences)
    assert lost.sent == new.sent == 0


def test_what_a_step_under_way_writes_counts_for_nothing() -> None:
    """A stage that the step has not reached may hold a guess there that was wrong."""
    core: EngineCore[Request] = EngineCore([Speed(), Speed()], None)
    request = begun(core)
    core.returned([1], 4, [0.1, 0.1])
    request.ids.append(5)
    core.sampled(request)
    assert isinstance(core.next_step(), MicroBatch)
    core.speculate(request, (6, 7))
    assert core.returned([1], 3, [0.1, 0.1])
    request.ids.append(8)  # not 6
    core.sampled(request)
    assert isinstance(core.next_step(), MicroBatch)
    assert request.sent == 6
    (one,) = core.suspend()
    assert one.positions == 5


def test_chunks_that_came_back_count_although_later_ones_are_under_way() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=2), Speed(chunk=2)], None)
    request = make_request(1, range(1, 9))
    core.add(request)
    core.admit()
    chunks = [core.next_step() for _ in range(3)]
    assert chunks[-1] == PrefillChunk(1, 4, 6, last=False)
    core.returned([1], 2, [0.1, 0.1])
    core.returned([1], 2, [0.1, 0.1])
    (one,) = core.suspend()
    assert (request.sent, one.positions) == (0, 4)


def test_a_suspended_request_that_ends_frees_what_was_retained_for_it() -> None:
    core: EngineCore[Request] = EngineCore([Speed()], None)
    request = begun(core)
    core.returned([1], 4, [0.1])
    sequence = request.sequence
    core.suspend()
    core.resume([Speed()], {sequence: 4})
    core.finish(request)
    assert core.freed() == [sequence]
    assert core.load.kept == core.load.live == 0


def test_kept_prefixes_outlive_a_suspension_as_far_as_the_stages_hold_them() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=120)], None)
    request = begun(core, TEXTS[0])
    core.returned([request.sequence], len(request.ids), [0.1])
    request.ids.append(7)
    core.sampled(request)
    core.finish(request)
    (kept,) = core.suspend()
    core.resume([Speed(chunk=120)], {kept.sequence: 40})
    again = make_request(2, TEXTS[0])
    core.add(again)
    core.admit()
    assert again.sent == 40


def test_a_copy_that_failed_is_prefilled_once_more_without_sharing() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=120)], 2000)
    first = begun(core, TEXTS[0])
    assert first.sent == len(first.ids)
    branch = make_request(2, [*TEXTS[0][:50], *[8] * 50])
    core.add(branch)
    assert core.admit() == [branch]
    assert (branch.source, branch.sent) == (first.sequence, 50)
    assert core.failed(branch.sequence) is None
    assert branch.status is RequestStatus.PREEMPTED
    assert core.admit() == [branch]
    assert (branch.source, branch.sent) == (0, 0)
    assert core.failed(branch.sequence) is branch


def test_a_request_that_is_refused_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 1)
    core: EngineCore[Request] = EngineCore([Speed()], None)
    core.add(make_request(1, [1]))
    late = make_request(2, [1])
    with pytest.raises(EdgeppError, match="are waiting already"):
        core.add(late)
    core.finish(late)
    assert late.status is RequestStatus.FINISHED
    assert [request.id for request in core.waiting] == [1]
