"""Admission, waiting and preemption: the ledger alone, without an engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.engine.ledger import HEADROOM, MAX_WAITING, Ledger
from edgepp.engine.prefix_cache import MAX_KEPT, MIN_SHARED_TOKENS, PrefixCache
from edgepp.engine.request import Request
from edgepp.engine.request_status import RequestStatus
from edgepp.errors import EdgeppError
from tests.builders.core_requests import make_request

TEXTS = [[n % 7 for n in range(100)], [n % 5 for n in range(80)], [n % 7 for n in range(60)] + [9] * 30]


class Stages:
    """The positions that the stages hold, and an engine that only counts."""

    def __init__(self, budget: int | None, spare: int = 300) -> None:
        self.sent: dict[int, int] = {}
        self.ledger: Ledger[Request] = Ledger(budget, spare, shares=True)

    def begin(self) -> list[Request]:
        begun = []
        for request in self.ledger.admit():
            held = request.sent
            if request.source:
                assert self.sent[request.source] >= held
            elif held:
                assert self.sent[request.sequence] >= held
            assert held < len(request.ids)
            self.compute(request)
            request.status, request.source = RequestStatus.READY, 0
            begun.append(request)
        self.free()
        return begun

    def compute(self, request: Request) -> None:
        self.sent[request.sequence] = request.sent = len(request.ids)

    def make_room(self) -> None:
        while (request := self.ledger.over_share()) is not None:
            check_who_gives_way(request, self.ledger)
            self.ledger.preempt(request, end_turn=True)
        self.free()

    def reclaim(self) -> None:
        while (request := self.ledger.over_budget()) is not None:
            check_who_gives_way(request, self.ledger)
            self.ledger.preempt(request)
        self.free()

    def finish(self, request: Request, held: int, steps_in_ring: int = 0) -> None:
        request.sent, request.steps_in_ring = held, steps_in_ring
        self.ledger.finish(request)

    def free(self) -> None:
        for sequence in self.ledger.freed():
            assert sequence not in self.ledger.live
            del self.sent[sequence]

    @property
    def held(self) -> int:
        return sum(self.sent.values())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(MIN_SHARED_TOKENS, 80), st.integers(1, 40), st.sampled_from("ab")),
        min_size=1,
        max_size=12,
    ),
    st.integers(130, 400),
    st.randoms(use_true_random=False),
)
def test_the_budget_holds_and_every_request_ends(
    texts: list[tuple[int, int, int, str]], budget: int, random: object
) -> None:
    stages, ended = Stages(budget), []
    coming = [
        make_request(n + 1, TEXTS[which][:length], tokens, owner)
        for n, (which, length, tokens, owner) in enumerate(texts)
    ]
    total = len(coming)
    for _ in range(3000):
        if coming and random.random() < 0.3:  # type: ignore[attr-defined]
            stages.ledger.add(coming.pop(0))
        stages.make_room()
        stages.begin()
        stages.reclaim()
        assert stages.held <= budget
        for request in list(stages.ledger.live.values()):
            stages.compute(request)
            if request.tokens == request.max_tokens or random.random() < 0.02:  # type: ignore[attr-defined]
                stages.ledger.finish(request)
                ended.append(request.id)
            else:
                request.ids.append(3)
        stages.free()
        if len(ended) == total:
            break
    assert sorted(ended) == list(range(1, total + 1))
    assert stages.held == stages.ledger.kept


def check_who_gives_way(request: Request, ledger: Ledger[Request]) -> None:
    """The newest request of the owner who holds most, but never the request that was admitted first."""
    live = ledger.live.values()
    first = min(live, key=lambda one: one.turn)
    held = {one.owner: sum(len(other.ids) for other in live if other.owner == one.owner) for one in live}
    assert request is not first
    others = [one for one in live if one is not first]
    assert held[request.owner] == max(held[one.owner] for one in others)
    assert all(one.id <= request.id for one in others if one.owner == request.owner)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(1, 60), st.integers(1, 3))
def test_an_owner_with_much_load_does_not_block_others(questions: int, slots: int, tokens: int, others: int) -> None:
    context = 200
    stages = Stages(budget=context * slots)
    asking = {f"other{n}": 0 for n in range(others)}
    number = 0
    waited: dict[str, int] = {}
    for step in range(700):
        greedy = sum(request.owner == "greedy" for request in (*stages.ledger.live.values(), *stages.ledger.waiting))
        for _ in range(questions - greedy):
            number += 1
            stages.ledger.add(make_request(number, [number % 97] * 20, max_tokens=180, owner="greedy"))
        for owner in asking:
            if step > 100 and owner not in {r.owner for r in (*stages.ledger.live.values(), *stages.ledger.waiting)}:
                number += 1
                asking[owner] += 1
                waited[owner] = step
                stages.ledger.add(make_request(number, [number % 97] * 10, max_tokens=min(tokens, 90), owner=owner))
        stages.make_room()
        stages.begin()
        stages.reclaim()
        for request in list(stages.ledger.live.values()):
            stages.compute(request)
            if request.tokens == request.max_tokens:
                stages.ledger.finish(request)
            else:
                request.ids.append(3)
        stages.free()
        for owner, since in waited.items():
            assert step - since <= 2 * context, (owner, since, step)
    assert all(asking.values())


def test_the_owner_who_holds_least_is_next() -> None:
    stages = Stages(budget=600)
    for n in range(1, 8):
        stages.ledger.add(make_request(n, [n] * 100, owner="ann"))
    stages.ledger.add(make_request(8, [8] * 100, owner="bob"))
    begun = [request.id for request in stages.begin()]
    assert begun[:2] == [1, 8]
    assert len(begun) < 8


def test_a_next_turn_takes_its_sequence_over_and_a_branch_copies_it() -> None:
    stages = Stages(budget=2000)
    first = make_request(1, TEXTS[0])
    stages.ledger.add(first)
    stages.begin()
    stages.finish(first, held=100)
    branch = make_request(2, [*TEXTS[0][:50], *[8] * 50])
    stages.ledger.add(branch)
    assert stages.begin() == [branch]
    assert branch.sequence != first.sequence
    assert branch.timing.reused == 50
    turn = make_request(3, [*TEXTS[0], *[8] * 20])
    stages.ledger.add(turn)
    assert stages.begin() == [turn]
    assert turn.sequence == first.sequence
    assert turn.timing.reused == 100


def test_a_sequence_is_shared_only_after_its_steps_in_the_ring_are_back() -> None:
    stages = Stages(budget=2000)
    first = make_request(1, TEXTS[0])
    stages.ledger.add(first)
    stages.begin()
    stages.finish(first, held=100, steps_in_ring=2)
    stages.ledger.returned(first.sequence)
    assert stages.ledger.kept == 0
    stages.ledger.returned(first.sequence)
    assert stages.ledger.kept == 100


def test_a_copy_that_was_never_made_is_not_kept() -> None:
    stages = Stages(budget=2000)
    first = make_request(1, TEXTS[0])
    stages.ledger.add(first)
    stages.begin()
    stages.finish(first, held=100)
    branch = make_request(2, [*TEXTS[0][:50], *[8] * 50])
    stages.ledger.add(branch)
    assert [(one, one.sent) for one in stages.ledger.admit()] == [(branch, 50)]
    assert branch.source == first.sequence
    stages.finish(branch, held=50)
    assert stages.ledger.freed() == [branch.sequence]
    assert stages.ledger.kept == 100


def test_owners_do_not_share_prefixes() -> None:
    stages = Stages(budget=2000)
    first = make_request(1, TEXTS[0], owner="ann")
    stages.ledger.add(first)
    stages.begin()
    stages.finish(first, held=100)
    other = make_request(2, TEXTS[0], owner="bob")
    stages.ledger.add(other)
    stages.begin()
    assert other.timing.reused == 0


def test_a_request_waits_for_headroom() -> None:
    stages = Stages(budget=100 + HEADROOM)
    one, two = make_request(1, [1] * 50, max_tokens=100), make_request(2, [2] * 50, max_tokens=100)
    stages.ledger.add(one)
    stages.ledger.add(two)
    assert stages.begin() == [one]
    stages.finish(one, held=50)
    assert stages.begin() == [two]


def test_the_queue_is_bounded() -> None:
    ledger = Ledger[Request](100, 100, shares=True)
    for n in range(MAX_WAITING):
        ledger.add(make_request(n + 1, [1]))
    with pytest.raises(EdgeppError, match="are waiting already"):
        ledger.add(make_request(MAX_WAITING + 1, [1]))


def test_without_a_budget_kept_positions_are_limited() -> None:
    stages = Stages(budget=None, spare=150)
    for n, text in enumerate(TEXTS[:2]):
        request = make_request(n + 1, text)
        stages.ledger.add(request)
        stages.begin()
        stages.finish(request, held=len(text))
    stages.reclaim()
    assert stages.ledger.kept == 100


def test_a_kept_sequence_that_another_covers_is_freed() -> None:
    cache = PrefixCache()
    assert cache.keep(1, "ann", TEXTS[0]) == []
    assert cache.keep(2, "ann", TEXTS[0][:50]) == [2]
    assert cache.keep(3, "ann", [*TEXTS[0], 8]) == [1]
    assert cache.keep(4, "ann", TEXTS[0][: MIN_SHARED_TOKENS - 1]) == [4]
    assert len(cache) == 1


def test_of_equal_sequences_the_least_recently_used_one_is_evicted_first() -> None:
    cache = PrefixCache()
    for n in range(MAX_KEPT):
        assert cache.keep(n + 1, "ann", [n] * 20) == []
    found = cache.find("ann", make_request(1, [0] * 20).known(20))
    assert found is not None
    cache.reused(found[0])
    assert cache.keep(100, "ann", [100] * 20) == [2]


def test_a_long_or_often_used_sequence_outlives_short_ones_but_not_for_ever() -> None:
    cache = PrefixCache()
    cache.keep(1, "ann", [1] * 200)
    for n in range(2, 10):
        cache.keep(n, "ann", [n] * 20)
    assert [cache.evict() for _ in range(4)] == [2, 3, 4, 5]
    evicted, n = 0, 10
    while evicted != 1:
        cache.keep(n, "ann", [n] * 20)
        evicted, n = cache.evict(), n + 1
        assert n < 1000


class Agent:
    """A conversation of one owner that grows by a turn at a time, on stages with little room."""

    def __init__(self, budget: int) -> None:
        self.stages = Stages(budget)
        self.history = [1] * 1000
        self._numbers = itertools.count(1)

    def ask(self, ids: list[int], answer: int, owner: str = "ann") -> Request:
        """One request from its beginning to its end."""
        request = make_request(next(self._numbers), ids, max_tokens=answer, owner=owner)
        self.stages.ledger.add(request)
        assert self.stages.begin() == [request]
        for _ in range(answer):
            request.ids.append(7)
            assert self.stages.ledger.over_budget() is None
            self.stages.free()
            self.stages.compute(request)
        self.stages.ledger.finish(request)
        self.stages.free()
        return request

    def turn(self, new: int) -> float:
        """One turn of the conversation with ``new`` tokens; the share of its prompt that needed no computing."""
        self.history = [*self.history, *[2 + len(self.history) % 5] * new]
        request = self.ask(self.history, 50)
        self.history = [*request.ids]
        return request.timing.reused / request.prompt_tokens


TITLES = {
    "another prompt": lambda history: [9] * 40 + history[100:1500],
    "the whole history in one message": lambda history: [9] * 40 + history[1:],
    "the same system prompt": lambda history: history[:900] + [9] * 60,
    "the conversation and a question about it": lambda history: history + [9] * 60,
    "the conversation without its last turn": lambda history: history[:-150] + [9] * 60,
}


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
@pytest.mark.parametrize("count", [1, 3])
def test_short_requests_beside_a_conversation_change_nothing_of_what_its_next_turn_shares(
    title: Callable[[list[int]], list[int]], count: int
) -> None:
    agent = Agent(budget=2 * 4096)
    agent.turn(200)
    for _ in range(10):
        for number in range(count):
            asked = title(agent.history)
            agent.ask([*asked[: len(asked) - number], *[8] * number], 20)
        assert agent.turn(100) >= 0.9
    assert len(agent.history) > 2500


def test_a_conversation_that_fills_the_context_is_kept_beside_titles() -> None:
    agent = Agent(budget=2 * 4096)
    agent.turn(2300)
    while len(agent.history) < 3900:
        agent.ask([9] * 30 + agent.history[10:600], 20)
        assert agent.turn(100) >= 0.9
