from __future__ import annotations

from edgepp.coordinator.failure_backoff import STEADY_S, FailureBackoff
from edgepp.coordinator.reopening import Reopening
from edgepp.engine.stage_handshake import Endpoint, StageUnreached
from edgepp.wire.address import Address


def test_waiting_times_grow_from_the_last_failure_and_end() -> None:
    backoff, now_s = FailureBackoff(), 0.0
    waits, banned_s = [], []
    for _ in range(12):
        waits.append(backoff.failed("a/0", "no memory", now_s) - now_s)
        banned_s.append(sum(backoff.is_banned("a/0", now_s + second) for second in range(1000)))
        now_s += 100.0
    assert waits == [1, 2, 4, 8, *[16] * 8]
    assert banned_s == [0, 0, 30, 60, 120, 240, 480, *[600] * 5]
    backoff.loaded("a/0", now_s)
    assert backoff.failed("a/0", "", now_s + STEADY_S) - now_s == STEADY_S + 1
    assert backoff.failed("a/0", "", now_s) - now_s == 2
    backoff.forget("a")
    assert backoff.reason("a/0") == ""


def test_a_stage_that_is_never_reached_is_avoided_longer_each_time_however_long_it_ran() -> None:
    backoff, now_s, banned_s = FailureBackoff(), 0.0, []
    for _ in range(4):
        backoff.loaded("a/0", now_s)
        backoff.unreachable("a/0", "it does not answer", now_s + 2 * STEADY_S)
        now_s += 2 * STEADY_S
        banned_s.append(sum(backoff.is_banned("a/0", now_s + second) for second in range(1000)))
    assert banned_s == [30, 60, 120, 240]


def test_a_stage_counts_as_unreachable_after_tries_in_a_row() -> None:
    one, two = (Endpoint((Address("10.0.0.9", port),)) for port in (5720, 5730))
    reopening, found = Reopening(), []
    three = [StageUnreached(two, "", "", sender=one) for _ in range(3)]
    unreached = [None if end is None else StageUnreached(end, "", "") for end in (one, one, None, one, one, two, two)]
    for error in (*unreached, *three):
        reopening.failed(error)
        found.append(reopening.unreachable)
    assert found == [*[None] * 9, three[-1]]
    reopening.forget()
    assert (reopening.unreachable, reopening.num_failures) == (None, 0)
