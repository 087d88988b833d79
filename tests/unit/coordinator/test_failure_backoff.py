from __future__ import annotations

from edgepp.coordinator.failure_backoff import STEADY_S, FailureBackoff


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
