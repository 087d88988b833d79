"""The seconds that steps wait at stages, derived from sending and computing times."""

from __future__ import annotations

import pytest

from edgepp.engine.queue_times import QueueTimes


def test_a_step_alone_waits_nowhere() -> None:
    queues = QueueTimes((0.1, 0.1), (0.0, 0.0))
    for sent_s in (0.0, 10.0):
        queues.add(sent_s, 100, (1.0, 2.0), 3.3)
    assert queues.seconds == [0.0, 0.0]


def test_steps_wait_for_the_steps_before_them_at_each_stage() -> None:
    queues = QueueTimes((0.0, 0.0), (0.0, 0.0))
    queues.add(0.0, 100, (1.0, 3.0), 4.0)
    queues.add(0.5, 100, (1.0, 3.0), 6.5)  # at stage 0 from 0.5 until 1, at stage 1 from 2 until 4
    assert queues.seconds == pytest.approx([0.5, 2.0])


def test_bytes_take_time_on_the_way() -> None:
    queues = QueueTimes((0.0, 0.0), (0.0, 100.0))
    queues.add(0.0, 100, (1.0, 1.0), 3.0)
    queues.add(0.0, 50, (1.0, 1.0), 4.0)  # leaves stage 0 at 2, comes to stage 1 at 2.5, which is free from 3 on
    assert queues.seconds == pytest.approx([1.0, 0.5])


def test_waits_are_no_longer_than_the_step_spent_outside_of_computing() -> None:
    queues = QueueTimes((5.0,), (0.0,))  # the link is much faster than it was when it was measured
    queues.add(0.0, 100, (1.0,), 1.0)
    queues.add(0.0, 100, (1.0,), 1.5)
    assert sum(queues.seconds) <= 0.5
    queues.add(2.0, 100, (1.0,), 1.0)
    assert sum(queues.seconds) <= 0.5
