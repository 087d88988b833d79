from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.engine.chunk_sizer import ChunkSizer
from edgepp.engine.request import Request
from edgepp.engine.scheduler import MIN_ROWS, MicroBatch, PrefillChunk, Scheduler, Step
from tests.builders.core_requests import make_request
from tests.builders.stages import stage_info


@dataclass(frozen=True)
class Fixed:
    """Chunks of one constant length."""

    chunk: int
    between: int = 1 << 30

    def interleaved(self, _pressure: float) -> int:
        return self.between


class Ring:
    """Returns steps in order, and records what was sent of each request; a fixed number of guesses is right."""

    def __init__(self, scheduler: Scheduler, wanted: int, right: int = 0) -> None:
        self.scheduler = scheduler
        self.wanted = wanted
        self.right = right
        self.steps: deque[Step] = deque()
        self.sent: dict[int, list[tuple[int, int, bool]]] = {}
        self.tokens: dict[int, int] = {}
        self.requests: dict[int, Request] = {}

    def add(self, sequence: int, prompt: int, held: int = 0) -> None:
        self.scheduler.add(holding(self.requests, sequence, prompt, held))
        self.sent[sequence], self.tokens[sequence] = [], 0

    def send(self) -> bool:
        step = self.scheduler.next_step()
        if step is None:
            return False
        self.steps.append(step)
        for sequence, start, stop, last in _parts(step):
            self.sent[sequence].append((start, stop, last))
        return True

    def give_back(self) -> None:
        step = self.steps.popleft()
        for sequence, _, stop, _ in _parts(step):
            request = self.requests[sequence]
            self.scheduler.returned(request)
            if not request.steps_in_ring and request.sent == len(request.ids):
                guessed = self.right if isinstance(step, MicroBatch) and step.guesses else 0
                tokens = min(1 + guessed, self.wanted - self.tokens[sequence])
                self.tokens[sequence] += tokens
                sample(self.scheduler, request, tokens)
                assert request.sent == stop + tokens - 1
                if self.tokens[sequence] == self.wanted:
                    assert request.steps_in_ring == 0
                    self.scheduler.remove(request)
                    del self.requests[sequence]

    def run(self) -> None:
        while self.requests:
            if not self.send():
                assert self.steps, "the scheduler has live requests but nothing to send and nothing to wait for"
                self.give_back()


def holding(requests: dict[int, Request], sequence: int, prompt: int, held: int = 0) -> Request:
    """An admitted request; the stages hold the first ``held`` positions of its sequence."""
    requests[sequence] = make_request(sequence, [0] * prompt, sequence=sequence)
    requests[sequence].sent = held
    return requests[sequence]


def sample(scheduler: Scheduler, request: Request, tokens: int = 1) -> None:
    request.ids += [0] * tokens
    scheduler.sampled(request)


def _parts(step: Step) -> list[tuple[int, int, int, bool]]:
    """(sequence, start, stop, last) of each part of a step."""
    if isinstance(step, PrefillChunk):
        return [(step.sequence, step.start, step.stop, step.last)]
    return [(sequence, at, at + 1, True) for sequence, at in zip(step.sequences, step.positions, strict=True)]


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 16),
    st.integers(1, 16),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40), st.integers(0, 59)), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_every_request_is_sent_whole_in_order_and_ends(
    stages: int, chunk: int, beside: int, prompts: list[tuple[int, int, int]], wanted: int, right: int
) -> None:
    ring = Ring(Scheduler(stages, Fixed(chunk, min(chunk, beside))), wanted, right)
    arriving = sorted((when, prompt, min(held, prompt - 1), n) for n, (prompt, when, held) in enumerate(prompts))
    for now in range(41):
        while arriving and arriving[0][0] == now:
            _, prompt, held, request = arriving.pop(0)
            ring.add(request, prompt, held)
        if not ring.send() and ring.steps:
            ring.give_back()
    ring.run()
    for request, (prompt, _, held) in enumerate(prompts):
        steps = ring.sent[request]
        assert steps[0][0] == min(held, prompt - 1)
        if not right:
            assert [start for start, _, _ in steps[1:]] == [stop for _, stop, _ in steps[:-1]]
            assert steps[-1][1] == prompt + wanted - 1
        prefill = [step for step in steps if step[0] < prompt]
        assert all(stop - start <= max(chunk, MIN_ROWS + 1) for start, stop, _ in prefill)
        assert all(stop - start >= min(MIN_ROWS, prompt - steps[0][0]) for start, stop, _ in prefill)
        assert [last for _, _, last in prefill] == [False] * (len(prefill) - 1) + [True]
        assert all(stop - start == 1 for start, stop, _ in steps[len(prefill) :])


class Driven:
    """A scheduler whose requests are named by their sequences."""

    def __init__(self, stages: int, lengths: Fixed) -> None:
        self.scheduler = Scheduler(stages, lengths)
        self.requests: dict[int, Request] = {}
        self.next_step = self.scheduler.next_step

    def add(self, sequence: int, prompt: int) -> None:
        self.scheduler.add(holding(self.requests, sequence, prompt))

    def returned(self, sequence: int) -> bool:
        """A step of a request comes back; whether its next token can be sampled."""
        request = self.requests[sequence]
        self.scheduler.returned(request)
        return not request.steps_in_ring and request.sent == len(request.ids)

    def sampled(self, sequence: int, tokens: int = 1) -> None:
        sample(self.scheduler, self.requests[sequence], tokens)

    def remove(self, sequence: int) -> None:
        self.scheduler.remove(self.requests[sequence])


def _decoding(requests: int, stages: int) -> Driven:
    """A scheduler whose requests all have their first token, not yet sent."""
    scheduler = Driven(stages, Fixed(8))
    for sequence in range(requests):
        scheduler.add(sequence, 8)
    came: list[int] = []
    while len(came) < requests:
        step = scheduler.next_step()
        assert isinstance(step, PrefillChunk)
        assert scheduler.returned(step.sequence)
        came.append(step.sequence)
    for sequence in came:
        scheduler.sampled(sequence)
    return scheduler


@pytest.mark.parametrize(("requests", "stages", "sizes"), [(4, 2, [2, 2]), (5, 2, [3, 2]), (1, 3, [1]), (3, 1, [3])])
def test_ready_requests_travel_as_one_micro_batch_per_stage(requests: int, stages: int, sizes: list[int]) -> None:
    scheduler = _decoding(requests, stages=max(stages, 1))
    batches = [scheduler.next_step() for _ in sizes]
    assert [len(batch.sequences) for batch in batches if isinstance(batch, MicroBatch)] == sizes
    assert scheduler.next_step() is None


def test_late_requests_wait_for_a_micro_batch_to_return() -> None:
    scheduler = _decoding(4, stages=2)
    first, second = scheduler.next_step(), scheduler.next_step()
    assert isinstance(first, MicroBatch)
    assert isinstance(second, MicroBatch)
    for request in first.sequences:
        assert scheduler.returned(request)
        scheduler.sampled(request)
    third = scheduler.next_step()
    assert isinstance(third, MicroBatch)
    assert set(third.sequences) == set(first.sequences)
    scheduler.remove(second.sequences[0])
    assert scheduler.next_step() is None
    scheduler.remove(second.sequences[1])
    assert scheduler.next_step() is None


def test_chunks_follow_each_other_without_waiting_up_to_the_window() -> None:
    scheduler = Driven(2, Fixed(10))
    scheduler.add(1, 100)
    sent = [scheduler.next_step() for _ in range(5)]
    assert [step.stop for step in sent if isinstance(step, PrefillChunk)] == [10, 20, 30, 40]
    assert sent[-1] is None
    scheduler.returned(1)
    assert scheduler.next_step() == PrefillChunk(1, 40, 50, last=False)


def test_a_decode_step_goes_before_a_prompt_and_one_small_chunk_behind_it() -> None:
    scheduler = Driven(2, Fixed(40, 4))
    scheduler.add(1, 4)
    scheduler.next_step()
    scheduler.add(2, 100)
    assert scheduler.returned(1)
    scheduler.sampled(1)
    assert scheduler.next_step() == MicroBatch((1,), (4,), guesses=True)
    assert scheduler.next_step() == PrefillChunk(2, 0, 4, last=False)
    assert scheduler.next_step() is None
    assert scheduler.returned(1)
    scheduler.sampled(1)
    assert scheduler.next_step() == MicroBatch((1,), (5,), guesses=True)
    assert scheduler.next_step() == PrefillChunk(2, 4, 8, last=False)


def test_prompts_send_their_chunks_in_turn() -> None:
    scheduler = Driven(3, Fixed(4))
    scheduler.add(1, 100)
    scheduler.add(2, 100)
    sent = [scheduler.next_step() for _ in range(4)]
    assert [step.sequence for step in sent if isinstance(step, PrefillChunk)] == [1, 2, 1, 2]


def test_a_prompt_proceeds_though_a_micro_batch_is_always_ready() -> None:
    scheduler = _decoding(8, stages=4)
    scheduler.add(100, 12)
    sent: list[Step] = []
    for _ in range(8):  # the coordinator is the slowest: what it sent is back before it sends again
        step = scheduler.next_step()
        assert step is not None
        sent.append(step)
        for request, *_ in _parts(step):
            if scheduler.returned(request):
                scheduler.sampled(request)
    assert [isinstance(step, PrefillChunk) for step in sent] == [False, True, *[False] * 6]


@pytest.mark.parametrize(("stages", "goes"), [(2, False), (3, True)])
def test_only_two_idle_stages_take_a_chunk_without_a_micro_batch_before_it(stages: int, goes: bool) -> None:
    scheduler = _decoding(1, stages)
    scheduler.add(100, 8)
    scheduler.add(101, 8)
    assert isinstance(scheduler.next_step(), MicroBatch)
    assert scheduler.next_step() == PrefillChunk(100, 0, 8, last=True)
    assert scheduler.next_step() is None
    scheduler.returned(100)
    assert isinstance(scheduler.next_step(), PrefillChunk) is goes


def test_more_waiting_prompts_allow_longer_chunks_between_decode_steps() -> None:
    sizer = ChunkSizer([stage_info(prefill_s=1 / 32, decode_s=0.5)])
    lengths = [sizer.interleaved(pressure) for pressure in (0.1, 1, 2, 3, 16)]
    assert lengths == [9, 9, 33, 57, 57]
    assert sizer.chunk == 64


def test_removing_a_request_frees_its_place_in_the_window() -> None:
    scheduler = Driven(1, Fixed(4))
    scheduler.add(1, 100)
    scheduler.add(2, 4)
    assert scheduler.next_step()
    scheduler.remove(1)
    assert scheduler.next_step() == PrefillChunk(2, 0, 4, last=True)


def test_right_guesses_advance_a_request() -> None:
    scheduler = _decoding(1, stages=2)
    assert scheduler.next_step() == MicroBatch((0,), (8,), guesses=True)
    assert scheduler.returned(0)
    scheduler.sampled(0, tokens=4)
    assert scheduler.next_step() == MicroBatch((0,), (12,), guesses=True)


def test_only_requests_that_travel_alone_carry_guesses() -> None:
    scheduler = _decoding(3, stages=2)
    steps = [scheduler.next_step() for _ in range(2)]
    assert [step.guesses for step in steps if isinstance(step, MicroBatch)] == [False, False]
