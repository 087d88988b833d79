"""Mailboxes between threads, and waiting without sleeping, on a clock that the test moves."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing

import pytest

from edgepp.wire import mailbox
from edgepp.wire.mailbox import Mailbox, wait_awake


def is_readable(box: Mailbox[int]) -> bool:
    return bool(select.select([box], [], [], 0.0)[0])


def test_items_come_out_in_order_and_leave_no_wake_up_behind() -> None:
    with closing(Mailbox[int]()) as box:
        assert not box.has_items
        assert box.drain() == []
        box.put(1)
        box.put(2)
        assert box.has_items
        assert is_readable(box)
        assert box.drain() == [1, 2]
        assert not box.has_items
        assert not is_readable(box)
        assert box.drain() == []


def test_a_wake_up_that_comes_behind_its_item_is_read_later() -> None:
    with closing(Mailbox[int]()) as box:
        box._items.put(1)  # a thread that is interrupted in the middle of ``put``
        assert box.drain() == [1]
        box._write.send(b"\0")
        assert is_readable(box)
        assert box.drain() == []
        assert not is_readable(box)


def test_more_wake_ups_than_fit_lose_no_item() -> None:
    with closing(Mailbox[int]()) as box:
        count = 0
        while not count or select.select([], [box._write], [], 0.0)[1]:
            box.put(count)
            count += 1
        box.put(count)
        assert box.drain() == list(range(count + 1))
        box.put(7)
        assert is_readable(box)
        assert box.drain() == [7]


@pytest.fixture
def turns_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that each turn of waiting takes; without one, 10 µs."""
    planned: list[float] = []
    now_s = 0.0

    def perf_counter() -> float:
        return now_s

    def take_a_turn() -> None:
        nonlocal now_s
        now_s += planned.pop(0) if planned else 1e-5

    monkeypatch.setattr(mailbox, "time", type("Clock", (), {"perf_counter": staticmethod(perf_counter)}))
    monkeypatch.setattr(mailbox, "_yield", take_a_turn)
    return planned


@pytest.mark.usefixtures("turns_s")
def test_waiting_awake_ends_when_something_comes_or_the_time_is_over() -> None:
    answers: Iterator[bool] = iter([False, False, True])
    assert wait_awake(lambda: next(answers), 1.0)
    asked = 0

    def never() -> bool:
        nonlocal asked
        asked += 1
        return False

    assert not wait_awake(never, 1e-3)
    assert asked == pytest.approx(100, abs=2)


def test_waiting_awake_ends_where_another_program_has_the_core(turns_s: list[float]) -> None:
    turns_s += [1e-5, 1e-5, 3e-3]
    asked: list[bool] = []
    assert not wait_awake(lambda: bool(asked.append(False)), 1.0)
    assert len(asked) == 3
