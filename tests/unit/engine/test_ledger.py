"""Admission, waiting and preemption: the ledger alone, without an engine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.engine.ledger import HEADROOM, MAX_WAITING, Ledger
from edgepp.engine.prefix_cache import MIN_SHARED_TOKENS
from edgepp.engine.request import Request
from edgepp.errors import EdgeppError
from tests.builders.core_requests import make_request
from tests.builders.properties import examples
from tests.unit.engine.ledger_stages import TEXTS, Stages


@settings(max_examples=examples(200))
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


@settings(max_examples=examples(25))
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
