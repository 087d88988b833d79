"""Which prefixes of prompts a ledger shares and keeps: a next turn, a branch, titles beside a conversation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from edgepp.engine.prefix_cache import MAX_KEPT, MIN_SHARED_TOKENS, PrefixCache
from edgepp.engine.request import Request
from tests.builders.core_requests import make_request
from tests.unit.engine.ledger_stages import TEXTS, Stages


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
