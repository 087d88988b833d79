"""Clocks that drift, over links whose two ways take different times: the truth is within the stated error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.tracing.clock_offset import MAX_DRIFT, ClockOffset


class OtherClock:
    """A clock that was ahead by ``offset_us`` at time 0, and is fast by ``drift``."""

    def __init__(self, offset_us: float, drift: float) -> None:
        self.offset_us, self.drift = offset_us, drift

    def ahead_us(self, at_us: float) -> float:
        return self.offset_us + self.drift * at_us

    def reads_us(self, at_us: float) -> int:
        return int(at_us + self.ahead_us(at_us))


def exchange(clock: ClockOffset, other: OtherClock, at_us: int, there_us: int, back_us: int) -> None:
    received, answered = at_us + there_us, at_us + there_us + 50
    clock.add(at_us, other.reads_us(received), other.reads_us(answered), answered + back_us)


@given(
    offset_us=st.integers(0, 10**9),
    drift=st.floats(-MAX_DRIFT, MAX_DRIFT),
    ways=st.lists(st.tuples(st.integers(20, 50_000), st.integers(20, 50_000)), min_size=1, max_size=60),
    gap_us=st.integers(10_000, 20_000_000),
    later_us=st.integers(0, 60_000_000),
)
def test_the_truth_is_within_the_stated_error(
    offset_us: int, drift: float, ways: list[tuple[int, int]], gap_us: int, later_us: int
) -> None:
    clock, other, at_us = ClockOffset(), OtherClock(offset_us, drift), 0
    for there_us, back_us in ways:
        at_us += gap_us
        exchange(clock, other, at_us, there_us, back_us)
    found = clock.at(at_us + later_us)
    assert abs(found.offset_us - other.ahead_us(at_us + later_us)) <= found.error_us + 3  # clocks tick in microseconds


def test_the_exchange_with_the_shortest_way_counts() -> None:
    clock, other = ClockOffset(), OtherClock(5_000_000, 0.0)
    for index, way_us in enumerate((9_000, 100, 4_000, 7_000)):
        exchange(clock, other, 500_000 * index, way_us, 3 * way_us)
    found = clock.at(2_000_000)
    assert abs(found.offset_us - 5_000_000) <= 100 + 1
    assert found.error_us == pytest.approx(200 + MAX_DRIFT * 1_500_000, rel=0.1)


def test_drift_is_learned_and_the_error_stays_below_a_millisecond_for_minutes() -> None:
    clock, other, noise = ClockOffset(), OtherClock(-3_000_000, 40e-6), random.Random(1)  # noqa: S311
    for second in range(600):
        exchange(clock, other, 10**9 + second * 10**6, 80 + noise.randrange(400), 80 + noise.randrange(400))
    found = clock.at(10**9 + 660 * 10**6)  # a minute after the last exchange
    assert found.drift == pytest.approx(40e-6, abs=1e-6)
    assert found.error_us < 300


def test_nothing_is_known_before_the_first_exchange_and_impossible_ones_are_ignored() -> None:
    clock = ClockOffset()
    assert not clock.at(0).is_known
    clock.add(1_000, 50, 40, 2_000)  # answered before it was asked
    clock.add(1_000, 50, 5_000_000, 2_000)  # thought longer than the question was away
    assert not clock.at(0).is_known
