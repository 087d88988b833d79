"""Fair shares: no owner can take the slot or the turn of another."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edgepp.coordinator.fair_shares import FairLimiter, FairQueue

OWNERS = st.sampled_from("abcdef")


@given(st.lists(st.tuples(OWNERS, st.booleans()), max_size=300), st.integers(0, 40))
def test_an_owner_without_a_slot_always_gets_one_and_the_total_is_bounded(
    moves: list[tuple[str, bool]], max_slots: int
) -> None:
    limiter, held = FairLimiter(max_slots), Counter[str]()
    for owner, takes in moves:
        if takes:
            others = sum(held_by_other - 1 for other, held_by_other in held.items() if other != owner and held_by_other)
            taken = limiter.acquire(owner)
            held[owner] += taken
            assert taken or held[owner] > (max_slots - others) // 2
        elif held[owner]:
            limiter.release(owner)
            held[owner] -= 1
        assert len(limiter) == held.total() <= max_slots + len(held)
        for one in held:
            assert held[one] - 1 <= max(0, max_slots // 2 + 1)
    for newcomer in "xyz":
        assert limiter.acquire(newcomer)


def test_a_single_owner_gets_half_of_the_slots() -> None:
    limiter = FairLimiter(128)
    counts = [sum(limiter.acquire(owner) for _ in range(200)) for owner in "abc"]
    assert counts == [65, 33, 17]


@given(st.lists(st.tuples(OWNERS, st.integers(0, 40)), max_size=200))
def test_turns_alternate_and_keep_the_order_of_each_owner(messages: list[tuple[str, int]]) -> None:
    turns: FairQueue[tuple[str, int]] = FairQueue(max_items=20, max_bytes=400)
    accepted: dict[str, list[int]] = {}
    for number, (owner, size) in enumerate(messages):
        if turns.add(owner, (owner, number), size):
            accepted.setdefault(owner, []).append(number)
        else:
            assert len(accepted[owner]) == 20 or sum(messages[n][1] for n in accepted[owner]) + size > 400
    taken: list[tuple[str, int]] = []
    while turns:
        taken.append(turns.take())
    for owner, numbers in accepted.items():
        assert [number for one, number in taken if one == owner] == numbers
        last = max(index for index, (one, _) in enumerate(taken) if one == owner)
        before = Counter(one for one, _ in taken[:last])
        assert all(count <= len(numbers) for one, count in before.items() if one != owner)
    assert sum(map(len, accepted.values())) == len(taken)


def test_a_message_larger_than_the_limit_waits_alone() -> None:
    turns: FairQueue[int] = FairQueue(max_items=5, max_bytes=100)
    assert turns.add("a", 1, 1000)
    assert not turns.add("a", 2, 1)
    assert turns.add("b", 3, 1)
    assert [turns.take(), turns.take()] == [1, 3]
    assert turns.add("a", 2, 1)
