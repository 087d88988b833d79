"""Which answers are due, and until when."""

from __future__ import annotations

import numpy as np
import pytest

from edgepp.engine.outstanding_steps import BROKEN_S, MAX_STEP_S, STEP_S, OutstandingSteps
from edgepp.engine.ring import Send, SendBatch
from edgepp.engine.step_times import SLACK, StepCost, StepKind, StepTimes
from edgepp.errors import RemoteProtocolError
from edgepp.wire.messages.data import Batch, Hidden

ROW = np.zeros((1, 8), np.float32)
BATCH = SendBatch((1, 2), (5, 6), np.zeros((2, 8), np.float32))


def cost(*compute_s: float, wire_s: float = 0.0) -> StepCost:
    return StepCost(StepKind(True, 1), compute_s, wire_s)


def known(expected_s: float, took_s: float, times: int = 100) -> StepTimes:
    """Times after so many steps that should take ``expected_s`` and took ``took_s``."""
    made = StepTimes()
    for _ in range(times):
        made.add(cost(expected_s), took_s)
    return made


def one_step(expected: StepCost, learned: StepTimes) -> OutstandingSteps:
    """One step, sent at 100 s."""
    steps = OutstandingSteps(learned)
    steps.sent(0, BATCH, expected, 0.0, 100.0)
    return steps


def chunk(sequence: int) -> Send:
    return Send(sequence, 0, 16, 1, ROW)


def answer(step: int, *sequences: int) -> Hidden | Batch:
    if len(sequences) == 1 and step != 0:
        return Hidden(9, sequences[0], step, 1, 8, "float32", "none", (1,))
    return Batch(9, step, sequences, (5,) * len(sequences), 8, "float32", "none", (1,))


@pytest.fixture
def steps() -> OutstandingSteps:
    """A micro-batch of sequences 1 and 2 (step 0) and a chunk of sequence 3 (step 1), sent at 100 s."""
    made = OutstandingSteps(StepTimes())
    made.sent(0, BATCH, cost(0.1), 0.0, 100.0)
    made.sent(1, chunk(3), cost(0.1), 0.0, 100.0)
    return made


def test_each_step_is_answered_once_and_in_order(steps: OutstandingSteps) -> None:
    assert steps.answered(answer(0, 1, 2), 101.0) is not None
    assert steps.answered(answer(1, 3), 102.0) is not None
    assert steps.answered(answer(1, 3), 103.0) is None
    assert steps.overdue_s(1e6, idle=False) is None


@pytest.mark.parametrize("wrong", [answer(1, 4), answer(0, 1, 3), answer(1, 1, 2)])
def test_an_answer_with_other_rows_breaks_the_protocol(steps: OutstandingSteps, wrong: Hidden | Batch) -> None:
    with pytest.raises(RemoteProtocolError):
        steps.answered(wrong, 101.0)


def test_a_step_at_an_earlier_position_voids_the_later_ones_of_its_sequence() -> None:
    """Positions 5, 6 and 7 are under way, and the guess at 6 was wrong; then another sequence goes on beside it."""
    steps = OutstandingSteps(StepTimes())
    for number, position in enumerate((5, 6, 7)):
        assert steps.sent(number, Send(1, position, 16, 1, ROW), cost(0.1), 0.0, 100.0) == {}
    steps.sent(3, Send(2, 0, 16, 1, ROW), cost(0.1), 0.0, 100.0)
    assert steps.sent(4, Send(1, 6, 16, 1, ROW), cost(0.1), 0.0, 100.0) == {1: 6}
    answered = [steps.answered(Hidden(9, 1, n, 1, 8, "float32", "none", (1,)), 101.0) for n in (0, 1, 2)]
    assert [one is not None for one in answered] == [True, False, False]
    batch = SendBatch((1, 2), (6, 1), np.zeros((2, 8), np.float32))
    assert steps.sent(5, batch, cost(0.1), 0.0, 101.0) == {1: 6}
    assert steps.answered(Hidden(9, 1, 4, 1, 8, "float32", "none", (1,)), 102.0) is None
    assert steps.answered(Hidden(9, 2, 3, 1, 8, "float32", "none", (1,)), 102.0) is not None


def test_a_later_answer_ends_the_wait_for_an_earlier_step(steps: OutstandingSteps) -> None:
    steps.answered(answer(1, 3), 101.0)
    with pytest.raises(RemoteProtocolError, match="answered already"):
        steps.answered(answer(0, 1, 2), 102.0)


def test_rows_that_stay_out_are_noticed_unless_their_sequence_is_forgotten(steps: OutstandingSteps) -> None:
    steps.answered(answer(0, 2), 101.0)
    assert not steps.is_incomplete(101.0 + STEP_S)
    assert steps.is_incomplete(101.1 + STEP_S)
    steps.postpone(60.0)
    assert not steps.is_incomplete(101.1 + STEP_S)
    steps.forget(1)
    assert not steps.is_incomplete(1e6)


@pytest.mark.parametrize(
    ("expected_s", "took_s", "allowed_s"),
    [
        (0.05, 0.05, STEP_S),
        (2.0, 2.0, 2.0 * SLACK),
        (2.0, 0.5, 2.0 * SLACK),
        (2.0, 6.0, 6.0 * SLACK),
        (1e9, 1e9, MAX_STEP_S),
    ],
)
def test_a_step_may_take_a_multiple_of_what_such_steps_took(expected_s: float, took_s: float, allowed_s: float) -> None:
    steps = one_step(cost(expected_s), known(expected_s, took_s))
    assert steps.overdue_s(99.9 + allowed_s, idle=False) is None
    assert steps.overdue_s(100.1 + allowed_s, idle=False) == pytest.approx(allowed_s + 0.1)
    steps.postpone(60.0)
    assert steps.overdue_s(100.1 + allowed_s, idle=False) is None


def test_the_first_step_of_a_kind_and_a_frame_on_a_link_get_twice_the_time() -> None:
    for steps, idle in ((one_step(cost(0.1), StepTimes()), False), (one_step(cost(0.1), known(0.1, 0.1)), True)):
        assert steps.overdue_s(100.0 + 2 * STEP_S, idle=idle) is None
        assert steps.overdue_s(100.1 + 2 * STEP_S, idle=idle) is not None


def test_steps_that_slow_down_one_by_one_are_never_overdue() -> None:
    """A machine under growing load: each step takes up to 5 times as long as the one before, a minute at last."""
    steps, now_s, took_s = OutstandingSteps(StepTimes()), 100.0, 1.0
    for number in range(40):
        steps.sent(number, BATCH, cost(1.0), 0.0, now_s)
        now_s += took_s
        assert steps.overdue_s(now_s, idle=False) is None, took_s
        assert steps.answered(Batch(9, number, (1, 2), (5, 6), 8, "float32", "none", (1,)), now_s) is not None
        took_s = min(60.0, took_s * 1.25)


def test_a_step_that_was_given_up_makes_the_next_ring_more_patient() -> None:
    learned = known(2.0, 2.0)
    assert one_step(cost(2.0), learned).overdue_s(117.0, idle=False) is not None
    assert one_step(cost(2.0), learned).overdue_s(117.0, idle=False) is None


def test_a_stage_is_wedged_by_its_own_part_of_the_longest_step() -> None:
    steps = one_step(cost(0.1, 2.0), known(1.0, 1.0))
    assert not steps.is_wedged(0, STEP_S)
    assert steps.is_wedged(0, STEP_S + 0.1)
    assert not steps.is_wedged(1, 2.0 * SLACK)
    assert steps.is_wedged(1, 2.0 * SLACK + 0.1)
    steps.forget(1)
    steps.forget(2)
    assert not steps.is_wedged(0, 1e6)


def test_a_step_is_lost_soon_where_a_connection_broke_after_it_was_sent() -> None:
    steps = one_step(cost(0.1, wire_s=0.5), known(0.6, 0.6))
    late_s = 100.1 + BROKEN_S + 0.5 * SLACK
    assert not steps.is_lost(late_s, reconnects=0)
    assert not steps.is_lost(late_s - 0.2, reconnects=1)
    assert steps.is_lost(late_s, reconnects=1)


def test_the_time_before_a_step_was_sent_does_not_count(steps: OutstandingSteps) -> None:
    for sequence in (1, 2, 3):
        steps.forget(sequence)
    steps.sent(2, chunk(4), cost(0.1), 0.0, 500.0)
    assert steps.overdue_s(501.0, idle=False) is None
