"""The engine core under random events: nothing is lost, and a core that checks everything each time does the same."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgepp.engine.request_status import RequestStatus
from tests.builders.core_requests import make_request
from tests.builders.properties import examples
from tests.unit.engine.core_side import TEXTS, Side, watched


class Life(RuleBasedStateMachine):
    """Random events; a second core that checks everything before every step must do exactly the same."""

    @initialize(
        stages=st.integers(1, 4),
        budget=st.sampled_from([None, 130, 170, 300]),
        spare=st.integers(0, 1),
        rewinds=st.sampled_from([True, True, True, False]),
    )
    def begin(self, stages: int, budget: int | None, spare: int, rewinds: bool) -> None:
        self.sides = [Side(stages, budget, spare, rewinds=rewinds, eager=eager) for eager in (False, True)]
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

    @rule(guesses=st.sampled_from([0, 0, 1, 4, -1, -1]))
    def step(self, guesses: int) -> None:
        admitted = [side.look() for side in self.sides]
        sent = [side.send(guesses) for side in self.sides]
        assert admitted[0] == admitted[1]
        assert sent[0] == sent[1]

    @rule(right=st.integers(0, 4), ends=st.sampled_from([False, False, False, True]), later=st.booleans())
    def give_back(self, right: int, ends: bool, later: bool) -> None:
        for side in self.sides:
            if side.ring:
                side.give_back(right, ends=ends, later=later)

    @rule()
    def draw(self) -> None:
        for side in self.sides:
            side.draw()

    @rule(
        turns=st.integers(1, 60),
        guesses=st.sampled_from([0, 4, -1]),
        right=st.integers(0, 4),
        later=st.sampled_from([0, 0, 2, 5]),
    )
    def go_on(self, turns: int, guesses: int, right: int, later: int) -> None:
        """Steps go and come; of ``later`` results one after the other tokens are drawn later."""
        for turn in range(turns):
            self.step(guesses)
            if turn % 3:
                self.give_back(right, ends=False, later=turn % 7 < later)
            if turn % 2:
                self.draw()

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
                if side.send(0) is None and not side.draw():
                    if not side.ring:
                        break
                    side.give_back(0, ends=False)
            assert not side.core.live
            assert not side.core.waiting
            assert all(request.status is RequestStatus.FINISHED for request in side.requests.values())
            side.look()
            assert sum(side.held.values()) == side.core.load.kept


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=examples(80), stateful_step_count=60, deadline=None)


def run(side: Side) -> Iterator[None]:
    """Run step by step until every request has ended."""
    while side.core.live or side.core.waiting:
        while side.look():
            continue
        yield
        if side.send(0) is None:
            side.give_back(0, ends=False)


@settings(max_examples=examples(20))
@given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 3))
def test_owners_share_a_short_budget_equally(owners: int, slots: int, stages: int) -> None:
    """Also where one owner has taken everything first: every waiting owner holds its share, less one request."""
    prompt, answer = 20, 10
    share = slots * (prompt + answer)
    side = Side(stages, owners * share, 0, rewinds=True, eager=False)
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
