from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.engine.scheduler import Scheduler, Step
from edgepp.errors import LocalProtocolError


def _run(scheduler: Scheduler, prompts: dict[int, int], wanted: int, in_ring_at_most: int) -> dict[int, list[Step]]:
    """Drive a scheduler with a ring that returns steps in order; what it sent, by request."""
    for request, prompt in prompts.items():
        scheduler.add(request, prompt)
    ring: deque[Step] = deque()
    sent: dict[int, list[Step]] = {request: [] for request in prompts}
    tokens = dict.fromkeys(prompts, 0)
    while len(scheduler):
        step = scheduler.next_step() if len(ring) < in_ring_at_most else None
        if step is not None:
            ring.append(step)
            sent[step.request].append(step)
            continue
        assert ring, "the scheduler has live requests but nothing to send and nothing to wait for"
        step = ring.popleft()
        if scheduler.returned(step.request, step.stop):
            tokens[step.request] += 1
            if tokens[step.request] == wanted:
                scheduler.remove(step.request)
            else:
                scheduler.sampled(step.request)
    return sent


@given(
    st.integers(1, 5),
    st.integers(1, 16),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 8),
)
def test_every_request_is_sent_whole_in_order_and_ends(
    stages: int, chunk: int, prompts: list[int], wanted: int, in_ring: int
) -> None:
    sent = _run(Scheduler(stages, chunk), dict(enumerate(prompts)), wanted, in_ring)
    for request, prompt in enumerate(prompts):
        steps = sent[request]
        assert [step.start for step in steps] == [0, *(step.stop for step in steps[:-1])]
        assert steps[-1].stop == prompt + wanted - 1
        prefill = [step for step in steps if step.start < prompt]
        assert all(step.stop - step.start <= chunk for step in prefill)
        assert [step.last for step in prefill] == [False] * (len(prefill) - 1) + [True]
        assert all(step.last and step.stop - step.start == 1 for step in steps[len(prefill) :])


def test_chunks_follow_each_other_without_waiting_up_to_the_window() -> None:
    scheduler = Scheduler(stages=2, chunk=10)
    scheduler.add(1, 100)
    sent = [scheduler.next_step() for _ in range(5)]
    assert [step.stop for step in sent if step] == [10, 20, 30, 40]
    assert sent[-1] is None
    scheduler.returned(1, 10)
    assert scheduler.next_step() == Step(1, 40, 50, last=False)


def test_a_decode_step_goes_before_a_prompt() -> None:
    scheduler = Scheduler(stages=1, chunk=4)
    scheduler.add(1, 4)
    scheduler.next_step()
    scheduler.add(2, 100)
    assert scheduler.returned(1, 4)
    scheduler.sampled(1)
    assert scheduler.next_step() == Step(1, 4, 5, last=True)
    assert scheduler.next_step() == Step(2, 0, 4, last=False)


def test_prompts_take_turns() -> None:
    scheduler = Scheduler(stages=3, chunk=4)
    scheduler.add(1, 100)
    scheduler.add(2, 100)
    assert [step.request for _ in range(4) if (step := scheduler.next_step())] == [1, 2, 1, 2]


def test_removing_a_request_frees_its_place_in_the_window() -> None:
    scheduler = Scheduler(stages=1, chunk=4)
    scheduler.add(1, 100)
    scheduler.add(2, 4)
    assert scheduler.next_step()
    scheduler.remove(1)
    assert scheduler.next_step() == Step(2, 0, 4, last=True)
    assert not scheduler.returned(1, 4)


def test_what_cannot_happen_is_refused() -> None:
    scheduler = Scheduler(stages=1, chunk=4)
    scheduler.add(1, 8)
    scheduler.next_step()
    with pytest.raises(LocalProtocolError, match="SAMPLED cannot happen to a request in PREFILL"):
        scheduler.sampled(1)
