"""Figures of `edgepp plan` for people: no exponent, and no zero for what is not zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.ui.plan_figures import duration, flops_rate, milliseconds, rate, times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(0.0004), "0.40 ms"),
        (duration(3.14), "3.1 s"),
        (duration(1200), "20 minutes"),
        (duration(86_400), "24 hours"),
        (duration(86_400 * 815), "815 days"),
        (milliseconds(0), ""),
        (milliseconds(0.0302), "30.2 ms"),
        (milliseconds(17.4), "17.4 s"),
        (rate(0.043), "0.043"),
        (rate(0), "<0.001"),
        (rate(14.36), "14.4"),
        (rate(1250), "1,250"),
        (times(183.2), "183 times"),
        (times(0.32), "0.32 times"),
        (times(1.4), "1.40 times"),
        (times(1e-9), "less than 0.001 times"),
        (flops_rate(3.6e12), "3.6 TFLOP/s"),
        (flops_rate(5e9), "5 GFLOP/s"),
        (flops_rate(1e6), "1 MFLOP/s"),
        (flops_rate(990e12), "990 TFLOP/s"),
    ],
)
def test_figures(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(1e-6, 1e9))
def test_a_figure_is_short_and_has_no_exponent(value: float) -> None:
    for text in (duration(value), milliseconds(value), rate(value), times(value), flops_rate(1e6 + 1e6 * value)):
        assert "e+" not in text
        assert "e-" not in text
        assert len(text) <= 21
    assert rate(value) not in ("0", "0.0")
