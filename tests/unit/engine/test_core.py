"""The engine core alone, without ring, model or thread: the test decides when steps come back."""

from __future__ import annotations

import pytest

from edgepp.engine import ledger
from edgepp.engine.core import EngineCore
from edgepp.engine.request import Request
from edgepp.engine.request_status import TRANSITIONS, RequestStatus
from edgepp.engine.scheduler import MicroBatch, PrefillChunk
from edgepp.errors import EdgeppError, LocalProtocolError
from tests.builders.core_requests import make_request
from tests.unit.engine.core_side import TEXTS, Speed, begun


def test_a_change_of_shares_admits_a_request_at_once() -> None:
    """An owner may not reduce another below its own share; one token more, and it may."""
    core: EngineCore[Request] = EngineCore([Speed(chunk=128)], 300)
    first, greedy = make_request(1, [1] * 40, 200, "ann"), make_request(2, [2] * 115, 60, "ann")
    small, waits = make_request(3, [3] * 41, 20, "bob"), make_request(4, [4] * 41, 64, "bob")
    for request in (first, greedy, small, waits):
        core.add(request)
    assert core.admit() == [first, small, greedy]
    for _ in range(3):
        assert isinstance(core.next_step(), PrefillChunk)
    assert core.admit() == []
    assert core.returned([first.sequence], 40, [0.1]) == [(first, slice(0, 1))]
    first.ids.append(5)
    core.sampled(first)
    assert core.admit() == [waits]
    assert greedy.status is RequestStatus.PREEMPTED


def test_a_request_goes_from_the_queue_to_its_end() -> None:
    core: EngineCore[Request] = EngineCore([Speed()], None)
    request = make_request(1, [1, 2, 3, 4])
    assert request.status is RequestStatus.WAITING
    core.add(request)
    core.admit()
    assert request.status is RequestStatus.PREFILL
    assert core.next_step() == PrefillChunk(1, 0, 4, last=True)
    assert request.status is RequestStatus.PREFILL_IN_FLIGHT
    assert core.returned([1], 4, [0.1]) == [(request, slice(0, 1))]
    request.ids.append(5)
    core.sampled(request)
    assert request.status is RequestStatus.READY
    assert core.next_step() == MicroBatch((1,), (4,), guesses=True)
    assert request.status is RequestStatus.DECODE_IN_FLIGHT
    core.speculate(request, (6, 7))
    assert core.returned([1], 3, [0.1]) == [(request, slice(0, 3))]
    request.ids += [6, 8]
    core.sampled(request)
    assert core.next_step() == MicroBatch((1,), (6,), guesses=True)
    core.finish(request)
    assert request.status is RequestStatus.FINISHED
    assert core.load.live == core.load.waiting == 0


def test_an_unlisted_transition_is_refused() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=2)], None)
    request = begun(core)
    with pytest.raises(LocalProtocolError, match="SAMPLED cannot happen to request 1, which is PREFILL"):
        core.sampled(request)
    core.finish(request)
    for cannot in (core.finish, core.preempt, core.add, core.sampled):
        with pytest.raises(LocalProtocolError, match="cannot happen to request 1, which is FINISHED"):
            cannot(request)
    assert not core.cancel(request)


def test_every_status_can_finish_and_every_live_one_can_be_preempted() -> None:
    events = {status: {event.name for one, event in TRANSITIONS if one is status} for status in RequestStatus}
    assert not events.pop(RequestStatus.FINISHED)
    assert all("FINISHED" in found for found in events.values())
    still = {status for status, found in events.items() if "PREEMPTED" not in found}
    assert still == {RequestStatus.WAITING, RequestStatus.PREEMPTED}


def test_a_preempted_request_continues_from_its_tokens() -> None:
    core: EngineCore[Request] = EngineCore([Speed()], None)
    request = begun(core)
    core.returned([1], 4, [0.1])
    request.ids.append(5)
    core.sampled(request)
    core.preempt(request)
    assert request.status is RequestStatus.PREEMPTED
    assert core.waiting == (request,)
    assert core.freed() == [1]
    assert core.admit() == [request]
    assert core.next_step() == PrefillChunk(2, 0, 5, last=True)


def test_another_core_takes_over_the_requests_of_lost_stages() -> None:
    lost: EngineCore[Request] = EngineCore([Speed()], None)
    request = begun(lost)
    lost.preempt(request)
    core: EngineCore[Request] = EngineCore([Speed()], None)
    core.add(request)
    assert request.status is RequestStatus.PREEMPTED
    assert core.admit() == [request]


def test_suspended_requests_go_on_with_what_the_next_stages_hold() -> None:
    core: EngineCore[Request] = EngineCore([Speed(), Speed()], None)
    whole, partly, lost, new = (begun(core, (10 * n, 2, 3, 4)) for n in (1, 2, 3, 4))
    for request in (whole, partly, lost):
        core.returned([request.sequence], 4, [0.1, 0.1])
        request.ids.append(5)
        core.sampled(request)
    sequences = [request.sequence for request in (whole, partly, lost, new)]
    assert {one.sequence: one.positions for one in core.suspend()} == dict.fromkeys(sequences[:3], 4)
    assert {request.status for request in core.waiting} == {RequestStatus.PREEMPTED}
    assert not core.in_flight
    core.resume([Speed()], {sequences[0]: 9, sequences[1]: 3, sequences[3]: 4})
    assert core.freed() == [sequences[2]]
    assert core.admit() == [whole, partly, lost, new]
    assert [request.status for request in (whole, partly)] == [RequestStatus.READY, RequestStatus.PREFILL]
    assert [(one.sequence, one.sent) for one in (whole, partly)] == [(sequences[0], 4), (sequences[1], 3)]
    assert {lost.sequence, new.sequence}.isdisjoint(sequences)
    assert lost.sent == new.sent == 0


def test_chunks_that_came_back_count_although_later_ones_are_under_way() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=2), Speed(chunk=2)], None)
    request = make_request(1, range(1, 9))
    core.add(request)
    core.admit()
    chunks = [core.next_step() for _ in range(3)]
    assert chunks[-1] == PrefillChunk(1, 4, 6, last=False)
    core.returned([1], 2, [0.1, 0.1])
    core.returned([1], 2, [0.1, 0.1])
    (one,) = core.suspend()
    assert (request.sent, one.positions) == (0, 4)


def test_a_suspended_request_that_ends_frees_what_was_retained_for_it() -> None:
    core: EngineCore[Request] = EngineCore([Speed()], None)
    request = begun(core)
    core.returned([1], 4, [0.1])
    sequence = request.sequence
    core.suspend()
    core.resume([Speed()], {sequence: 4})
    core.finish(request)
    assert core.freed() == [sequence]
    assert core.load.kept == core.load.live == 0


def test_kept_prefixes_outlive_a_suspension_as_far_as_the_stages_hold_them() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=120)], None)
    request = begun(core, TEXTS[0])
    core.returned([request.sequence], len(request.ids), [0.1])
    request.ids.append(7)
    core.sampled(request)
    core.finish(request)
    (kept,) = core.suspend()
    core.resume([Speed(chunk=120)], {kept.sequence: 40})
    again = make_request(2, TEXTS[0])
    core.add(again)
    core.admit()
    assert again.sent == 40


def test_a_copy_that_failed_is_prefilled_once_more_without_sharing() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=120)], 2000)
    first = begun(core, TEXTS[0])
    assert first.sent == len(first.ids)
    branch = make_request(2, [*TEXTS[0][:50], *[8] * 50])
    core.add(branch)
    assert core.admit() == [branch]
    assert (branch.source, branch.sent) == (first.sequence, 50)
    assert core.failed(branch.sequence) is None
    assert branch.status is RequestStatus.PREEMPTED
    assert core.admit() == [branch]
    assert (branch.source, branch.sent) == (0, 0)
    assert core.failed(branch.sequence) is branch


def test_a_request_that_is_refused_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 1)
    core: EngineCore[Request] = EngineCore([Speed()], None)
    core.add(make_request(1, [1]))
    late = make_request(2, [1])
    with pytest.raises(EdgeppError, match="are waiting already"):
        core.add(late)
    core.finish(late)
    assert late.status is RequestStatus.FINISHED
    assert [request.id for request in core.waiting] == [1]


def test_a_request_preempted_while_its_token_is_drawn_waits_for_the_token() -> None:
    core: EngineCore[Request] = EngineCore([Speed()], None)
    request = make_request(1, [1] * 10)
    core.add(request)
    assert core.admit() == [request]
    assert isinstance(core.next_step(), PrefillChunk)
    assert core.is_idle is False
    assert core.returned([request.sequence], 10, [0.1]) == [(request, slice(0, 1))]
    assert core.is_idle
    core.preempt(request)
    assert core.admit() == []
    request.ids.append(7)
    core.sampled(request)
    assert core.admit() == [request]
    assert core.next_step() == PrefillChunk(request.sequence, 0, 11, last=True)


def test_a_small_micro_batch_waits_for_tokens_that_are_drawn() -> None:
    """Four requests over two stages: one that is ready goes with another one whose token comes next."""
    core: EngineCore[Request] = EngineCore([Speed(), Speed()], None)
    requests = [make_request(number, [number] * 10) for number in range(1, 5)]
    for request in requests:
        core.add(request)
    assert core.admit() == requests
    while core.next_step() is not None:
        continue
    for request in requests:
        while not core.returned([request.sequence], 10, [0.1]):
            core.next_step()

    def draw(request: Request) -> None:
        request.ids.append(7)
        core.sampled(request)

    draw(requests[0])
    assert core.next_step() is None
    draw(requests[1])
    assert core.next_step() == MicroBatch((requests[0].sequence, requests[1].sequence), (10, 10), False)
