"""Figures of ``bench.http_overhead`` and ``bench.aiperf_check``, from made-up answers."""

from __future__ import annotations

import pytest

from bench.aiperf_check import FIGURES, compared
from bench.http_overhead import figures
from bench.http_overhead import lines as overhead_lines
from bench.toolkit.http_load import together
from edgepp.benchmark.workload import ObservedAnswer


def answer(*arrivals_s: float) -> ObservedAnswer:
    return ObservedAnswer(10, 0, len(arrivals_s), arrivals_s)


def test_a_difference_and_a_ratio_are_formed_within_a_round() -> None:
    found = {
        ("first", "python"): [[answer(0.010)], [answer(0.050)], [answer(0.020)]],
        ("first", "http"): [[answer(0.012)], [answer(0.051)], [answer(0.030)]],
        ("streams", "python"): [[answer(1.0, 2.0), answer(1.0, 4.0)]] * 3,
        ("streams", "http"): [[answer(1.0, 2.0), answer(1.0, 5.0)]] * 3,
    }
    result = figures(found)
    assert result["added_ttft_ms"]["median"] == pytest.approx(2)
    assert result["added_ttft_ms"]["spread"] == pytest.approx([1, 10])
    assert result["rate_ratio"]["median"] == pytest.approx(0.8)
    assert result["aggregate_tokens_per_s"]["python"]["median"] == pytest.approx(1)
    assert len(list(overhead_lines(result))) == 3


def test_the_rate_together_ends_with_the_last_token_of_the_last_request() -> None:
    assert together([answer(1.0, 2.0), answer(3.0)]) == pytest.approx(1)


def test_aiperf_is_compared_with_the_same_round() -> None:
    rounds = {
        side: [dict.fromkeys(FIGURES, value * by) for value in (1.0, 2.0, 4.0)]
        for side, by in (("edgepp", 1), ("aiperf", 2))
    }
    result = compared(rounds)
    assert [result["ratio"][name]["median"] for name in FIGURES] == [2.0] * 3
    assert result["aiperf"]["itl_s"] == {"median": 4.0, "spread": [2.0, 8.0]}
