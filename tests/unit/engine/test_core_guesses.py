"""Guesses in the ring of an engine core: which are right, which are void, and whom they give way to."""

from __future__ import annotations

from collections.abc import Sequence

from edgepp.engine.core import EngineCore
from edgepp.engine.request import Request
from edgepp.engine.request_status import RequestStatus
from edgepp.engine.scheduler import MicroBatch, PrefillChunk
from tests.builders.core_requests import make_request
from tests.unit.engine.core_side import TEXTS, Speed, begun


def decoding(core: EngineCore[Request], ids: Sequence[int] = (1, 2, 3, 4)) -> Request:
    """A request with ``ids`` and the token 5, which is in the ring."""
    request = begun(core, ids)
    core.returned([1], len(ids), [0.1])
    request.ids.append(5)
    core.sampled(request)
    assert core.next_step() == MicroBatch((1,), (len(ids),), guesses=True)
    return request


def test_a_right_guess_makes_the_step_behind_it_the_newest() -> None:
    core: EngineCore[Request] = EngineCore([Speed(), Speed(), Speed()], None)
    request = decoding(core)
    for token in (6, 7):
        assert core.guessable() == [request]
        core.guessed(request, token)
    assert core.returned([1], 1, [0.1]) == [(request, slice(0, 1))]
    request.ids.append(6)
    core.sampled(request)
    assert (request.status, request.guesses, request.sent) == (RequestStatus.DECODE_IN_FLIGHT, (7,), 6)
    assert core.next_step() is None
    assert core.guessable() == [request]
    assert core.returned([1], 1, [0.1]) == [(request, slice(0, 1))]
    assert request.settled == 6


def test_a_wrong_guess_voids_all_steps_behind_it() -> None:
    core: EngineCore[Request] = EngineCore([Speed(), Speed(), Speed()], None)
    request = decoding(core)
    for token in (6, 7):
        core.guessed(request, token)
    core.returned([1], 1, [0.1])
    request.ids.append(8)
    core.sampled(request)
    assert (request.status, request.guesses, request.steps_in_ring) == (RequestStatus.READY, (), 0)
    assert core.returned([1], 1, [0.1]) == [], "the result of the step with token 6"
    assert core.next_step() == MicroBatch((1,), (5,), guesses=True)
    assert core.guessable() == [request]


def test_the_sequence_of_an_ended_answer_is_kept_although_guesses_are_under_way() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=120)] * 2, None)
    request = decoding(core, TEXTS[0][:40])
    core.guessed(request, 6)
    core.returned([1], 1, [0.1])
    core.finish(request)
    assert not core.in_flight
    assert core.load.kept == 41
    again = make_request(2, [*TEXTS[0][:40], 5, 9, 9])
    core.add(again)
    assert core.admit() == [again]
    assert (again.sequence, again.sent) == (1, 41)
    assert core.returned([1], 1, [0.1]) == [], "the result of the guess of the answer before"
    assert core.next_step() == PrefillChunk(1, 41, 43, last=True)


def test_guesses_give_way_to_other_requests_and_prompts() -> None:
    core: EngineCore[Request] = EngineCore([Speed(chunk=2), Speed(chunk=2), Speed(chunk=2)], None)
    request = make_request(1, [1, 2])
    core.add(request)
    core.admit()
    core.next_step()
    core.returned([1], 2, [0.1])
    request.ids.append(5)
    core.sampled(request)
    assert isinstance(core.next_step(), MicroBatch)
    other = make_request(2, [7, 8])
    core.add(other)
    assert core.admit() == [other]
    assert core.guessable() == []
    assert isinstance(core.next_step(), PrefillChunk)
    assert core.guessable() == []
    core.returned([2], 2, [0.1])
    other.ids.append(5)
    core.sampled(other)
    assert core.guessable() == []
    assert core.next_step() == MicroBatch((2,), (2,), guesses=True)
    assert core.guessable() == [request, other]


def test_an_answer_has_no_more_guesses_than_tokens_to_draw() -> None:
    core: EngineCore[Request] = EngineCore([Speed()] * 4, None)
    request = make_request(1, [1, 2, 3, 4], 3)
    core.add(request)
    core.admit()
    core.next_step()
    core.returned([1], 4, [0.1])
    request.ids.append(5)
    core.sampled(request)
    core.next_step()
    assert core.guessable() == [request]
    core.guessed(request, 6)
    assert core.guessable() == []


def test_what_a_step_under_way_writes_counts_for_nothing() -> None:
    """A stage that the step has not reached may hold a guess there that was wrong."""
    core: EngineCore[Request] = EngineCore([Speed(), Speed()], None)
    request = begun(core)
    core.returned([1], 4, [0.1, 0.1])
    request.ids.append(5)
    core.sampled(request)
    assert isinstance(core.next_step(), MicroBatch)
    core.speculate(request, (6, 7))
    assert core.returned([1], 3, [0.1, 0.1])
    request.ids.append(8)  # not 6
    core.sampled(request)
    assert isinstance(core.next_step(), MicroBatch)
    assert request.sent == 6
    (one,) = core.suspend()
    assert one.positions == 5
