"""When guesses pay."""

from __future__ import annotations

import pytest

from edgepp.engine.speculation import MAX_GUESSES, GuessPlan, SpeculationControl, SpeculationCosts

CHEAP = SpeculationCosts(plain_s=0.05, guess_s=0.001, busiest_s=0.05)
DEAR = SpeculationCosts(plain_s=0.05, guess_s=0.05, busiest_s=0.05)


def test_guesses_that_are_right_grow_in_number() -> None:
    control = SpeculationControl()
    for _ in range(5):
        guesses = control.plan(CHEAP, behind=False, together=True).together
        control.observe(guesses, guesses, guesses + 1)
    assert control.plan(CHEAP, behind=False, together=True) == GuessPlan(together=MAX_GUESSES)


def test_guesses_that_do_not_pay_become_rarer() -> None:
    control, guessed = SpeculationControl(), []
    for step in range(2000):
        guesses = control.plan(DEAR, behind=False, together=True).together
        control.observe(min(guesses, 1), 0, 1)
        if guesses:
            guessed.append(step)
    assert len([step for step in guessed if step < 100]) <= 15
    assert len([step for step in guessed if step >= 1000]) <= 6


def test_guesses_travel_behind_where_stages_would_stand_idle() -> None:
    """Two equal stages of 0.05 s: a lone token takes a trip of 0.1 s, a right guess behind it half of that."""
    costs = SpeculationCosts(plain_s=0.1, guess_s=0.04, busiest_s=0.05)
    assert SpeculationControl().plan(costs, behind=True, together=False) == GuessPlan(behind=1)
    assert SpeculationControl().plan(costs, behind=False, together=False) == GuessPlan()
    far = SpeculationCosts(plain_s=0.2, guess_s=0.04, busiest_s=0.05)
    assert SpeculationControl().plan(far, behind=True, together=False) == GuessPlan(behind=3)
    assert costs.followed_tokens_per_s(1, 0.7) == pytest.approx(10 / (1 - 0.7 / 2))
    assert costs.followed_tokens_per_s(1, 1.0) == pytest.approx(20)
    assert costs.followed_tokens_per_s(2, 1.0) == pytest.approx(20), "a third step cannot help two stages"


def test_guesses_that_take_processors_from_the_step_before_them_are_given_up() -> None:
    costs, control = SpeculationCosts(plain_s=0.1, guess_s=0.04, busiest_s=0.05), SpeculationControl()
    for _ in range(60):
        if control.plan(costs, behind=True, together=False).behind:
            costs.observe_followed(1, 0.15)
        control.observe(1, 0, 1)
    assert control.plan(costs, behind=True, together=False) == GuessPlan()


def test_costs_follow_what_is_measured() -> None:
    costs = SpeculationCosts(1.0, 1.0, 1.0)
    for _ in range(40):
        costs.observe(0, 0.05)
        costs.observe(4, 0.07)
    assert costs.plain_s == pytest.approx(0.05, rel=0.1)
    assert costs.guess_s == pytest.approx(0.005, rel=0.1)
