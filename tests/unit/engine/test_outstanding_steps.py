"""Which answers are due, and until when."""

from __future__ import annotations

import numpy as np
import pytest

from edgepp.engine.outstanding_steps import MAX_STEP_S, STEP_S, OutstandingSteps
from edgepp.engine.ring import Send, SendBatch
from edgepp.errors import RemoteProtocolError
from edgepp.wire.messages import Batch, Hidden

ROW = np.zeros((1, 8), np.float32)
BATCH = SendBatch((1, 2), (5, 6), np.zeros((2, 8), np.float32))


def chunk(sequence: int) -> Send:
    return Send(sequence, 0, 16, 1, ROW)


def answer(step: int, *sequences: int) -> Hidden | Batch:
    if len(sequences) == 1 and step != 0:
        return Hidden(9, sequences[0], step, 1, 8, "float32", "none", (1,))
    return Batch(9, step, sequences, (5,) * len(sequences), 8, "float32", "none", (1,))


@pytest.fixture
def steps() -> OutstandingSteps:
    """A micro-batch of sequences 1 and 2 (step 0) and a chunk of sequence 3 (step 1), sent at 100 s."""
    made = OutstandingSteps()
    made.sent(0, BATCH, 0.1, 0.0, 100.0)
    made.sent(1, chunk(3), 0.1, 0.0, 100.0)
    return made


def test_each_step_is_answered_once_and_in_order(steps: OutstandingSteps) -> None:
    assert steps.answered(answer(0, 1, 2), 101.0) is not None
    assert steps.answered(answer(1, 3), 102.0) is not None
    assert steps.answered(answer(1, 3), 103.0) is None
    assert steps.overdue_s(1e6) is None


@pytest.mark.parametrize("wrong", [answer(1, 4), answer(0, 1, 3), answer(1, 1, 2)])
def test_an_answer_with_other_rows_breaks_the_protocol(steps: OutstandingSteps, wrong: Hidden | Batch) -> None:
    with pytest.raises(RemoteProtocolError):
        steps.answered(wrong, 101.0)


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


@pytest.mark.parametrize(("expected_s", "allowed_s"), [(0.1, STEP_S), (5.0, 20.0), (1e9, MAX_STEP_S)])
def test_a_step_may_take_four_times_what_was_measured(expected_s: float, allowed_s: float) -> None:
    steps = OutstandingSteps()
    steps.sent(0, BATCH, expected_s, 0.0, 100.0)
    assert steps.overdue_s(100.0 + allowed_s) is None
    assert steps.overdue_s(100.1 + allowed_s) == pytest.approx(allowed_s + 0.1)
    steps.postpone(60.0)
    assert steps.overdue_s(100.1 + allowed_s) is None


def test_the_time_before_a_step_was_sent_does_not_count(steps: OutstandingSteps) -> None:
    for sequence in (1, 2, 3):
        steps.forget(sequence)
    steps.sent(2, chunk(4), 0.1, 0.0, 500.0)
    assert steps.overdue_s(501.0) is None
