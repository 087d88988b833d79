"""Failures in a simulation: what ends in an error, what goes on, and for how long pipelines are down."""

from __future__ import annotations

import math

import pytest

from edgepp.simulator.simulate import simulate
from edgepp.simulator.workload import Arrival, Failure, RecoveryPolicy, at_once, poisson
from tests.unit.simulator.test_simulate import MODEL, even


def test_requests_end_in_an_error_when_a_stage_dies() -> None:
    after = RecoveryPolicy(detect_s=2, reload_s=10)
    arrivals = [Arrival(0.0, "a", 10, 1000), Arrival(11.0, "b", 10, 4), Arrival(15.0, "c", 10, 4)]
    report = simulate([even()], arrivals, [Failure(10.0, 0, 1)], recovery=after)
    assert [outcome.status for outcome in report.outcomes] == ["failed", "failed", "answered"]
    assert report.outcomes[2].first_s == pytest.approx(22 - 15 + 0.04)
    (recovery,) = report.recoveries
    assert (recovery.down_s, recovery.failed, recovery.resumed) == (12, 2, 0)
    assert 10 < report.outcomes[0].tokens < 1000


def test_recovered_requests_go_on_where_they_were() -> None:
    after = RecoveryPolicy(detect_s=2, reload_s=10, recover=True)
    report = simulate([even()], at_once(2, 10, 300), [Failure(10.0, 0, 1)], recovery=after)
    (recovery,) = report.recoveries
    assert report.answered == 2
    assert report.tokens == 600
    assert recovery.resumed == recovery.stall_s.count == 2
    assert recovery.lost_positions > 200
    prefill_s = recovery.lost_positions * MODEL.token_s / 2
    assert 12 < recovery.stall_s.p50 < 12 + 3 * prefill_s
    assert report.itl_s.maximum == pytest.approx(recovery.stall_s.maximum, abs=0.2)


def test_a_machine_that_comes_back_late_keeps_its_pipeline_down_and_others_take_over() -> None:
    arrivals = poisson(200, 2.0, (4, 8), (4, 8), seed=1)
    late, never = Failure(20.0, 0, 0, returns_s=60.0), Failure(20.0, 1, 1, returns_s=math.inf)
    report = simulate(
        [even()] * 3, arrivals, [late, never], recovery=RecoveryPolicy(detect_s=1, reload_s=5, recover=True)
    )
    assert [recovery.down_s for recovery in report.recoveries] == [45, math.inf]
    took = [(arrival.at_s, outcome.replica) for arrival, outcome in zip(arrivals, report.outcomes, strict=True)]
    assert not [at for at, replica in took if replica == 0 and 21 < at < 65]
    assert not [at for at, replica in took if replica == 1 and at > 21]
    assert [at for at, replica in took if replica == 0 and at > 65]


def test_nobody_is_there_for_good() -> None:
    report = simulate([even()], poisson(50, 5.0, (4, 8), (4, 8)), [Failure(1.0, 0, 0, math.inf)])
    assert report.refused > 20
    assert report.failed > 0
    assert report.answered + report.failed + report.refused == 50


def test_failures_in_a_row_prolong_what_they_meet() -> None:
    losses = [Failure(5.0, 0, 0), Failure(6.0, 0, 1), Failure(10.0, 0, 0), Failure(40.0, 0, 0)]
    after = RecoveryPolicy(detect_s=2, reload_s=10, recover=True)
    report = simulate([even()], at_once(3, 10, 500), losses, recovery=after)
    assert report.answered == 3
    assert [recovery.resumed for recovery in report.recoveries] == [3, 3]
