"""The event model of guesses in flight agrees with arithmetic where there is any."""

from __future__ import annotations

import math

import pytest

from bench.toolkit.guess_model import RingCosts, tokens_per_s
from bench.toolkit.oracle import OracleDraft

FREE = RingCosts((0.01, 0.01), 0.0, 0.0)
"""Two stages with a core each; head and hops take no time."""


def step_s(costs: RingCosts) -> float:
    """Seconds of a step that travels alone: every stage, the head, and one more hop than there are stages."""
    return sum(costs.stages_s) + costs.head_s + costs.hop_s * (len(costs.stages_s) + 1)


def test_one_frame_in_flight_takes_a_step_per_token() -> None:
    costs = RingCosts((0.010, 0.006), 0.003, 0.0005, cores=2)
    assert step_s(costs) == pytest.approx(0.0205)
    assert tokens_per_s(costs, 0.9, 1) == pytest.approx(1 / step_s(costs))


@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.7, 0.9])
def test_two_stages_gain_one_divided_by_one_minus_half_the_acceptance(acceptance: float) -> None:
    gain = tokens_per_s(FREE, acceptance, tokens=6000) * step_s(FREE)
    assert gain == pytest.approx(1 / (1 - acceptance / 2), rel=0.03)


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_guesses_that_are_always_right_keep_every_stage_busy(stages: int) -> None:
    costs = RingCosts((0.01,) * stages, 0.0, 0.0)
    assert tokens_per_s(costs, 1.0) == pytest.approx(100, rel=0.01)


def test_guesses_that_are_never_right_cost_nothing_where_each_process_has_a_core() -> None:
    costs = RingCosts((0.01, 0.008, 0.012), 0.004, 0.0003)
    assert tokens_per_s(costs, 0.0) >= 0.9 / step_s(costs)
    assert tokens_per_s(FREE, 0.0) == pytest.approx(1 / step_s(FREE))


def test_processes_share_the_cores_that_there_are() -> None:
    costs = [RingCosts((0.01,) * 4, 0.002, 0.0, cores=cores) for cores in (1, 2, math.inf)]
    one, two, many = (tokens_per_s(cost, 1.0) for cost in costs)
    assert one == pytest.approx(1 / step_s(costs[0]), rel=0.01)
    assert two == pytest.approx(2 * one, rel=0.05)
    assert many == pytest.approx(4 * one, rel=0.1)


def test_a_draft_that_computes_bounds_the_rate_where_it_is_slower_than_a_stage() -> None:
    slow, fast = (RingCosts((0.01, 0.01), 0.0, 0.0, draft_s=draft_s) for draft_s in (0.016, 0.001))
    assert tokens_per_s(slow, 1.0) == pytest.approx(1 / 0.016, rel=0.05)
    assert tokens_per_s(fast, 1.0) == pytest.approx(1 / 0.01, rel=0.05)
    assert tokens_per_s(fast, 0.6) < tokens_per_s(FREE, 0.6)


def test_a_draft_on_the_cores_of_the_stages_takes_them_from_the_stages() -> None:
    costs = RingCosts((0.01, 0.01), 0.0, 0.0, cores=2, draft_s=0.01)
    assert tokens_per_s(costs, 1.0) == pytest.approx(2 / 0.03, rel=0.05)


def test_one_seed_gives_one_rate() -> None:
    costs = RingCosts((0.01, 0.01), 0.003, 0.0003, cores=2)
    assert tokens_per_s(costs, 0.7, seed=3) == tokens_per_s(costs, 0.7, seed=3) != tokens_per_s(costs, 0.7, seed=4)


def test_an_oracle_guesses_the_asked_share_of_an_answer_right() -> None:
    prompt, answer = list(range(20)), [100 + n % 7 for n in range(200)]
    text = prompt + answer
    draft = OracleDraft(text, len(prompt), 0.7, seed=1)
    guesses = draft.propose(prompt, 200)
    assert sum(guess == token for guess, token in zip(guesses, answer, strict=True)) == 140
    assert list(draft.propose(text[:50], 3)) == list(guesses[30:33])
    assert list(draft.propose([*text[:50], 5], 3)) == list(guesses[31:34])  # a guess that is in flight counts as text
    assert not draft.propose(text, 4)
