"""When a load may end."""

from __future__ import annotations

import pytest

from edgepp.coordinator.load_estimate import LoadEstimate


def test_the_rest_takes_as_long_as_the_mean_rate_says() -> None:
    estimate = LoadEstimate()
    estimate.note(0.0, 100.0)
    assert estimate.eta_s is None
    estimate.note(0.25, 110.0)
    assert estimate.eta_s == pytest.approx(30.0)
    estimate.note(1.0, 120.0)
    assert estimate.eta_s == 0.0


def test_another_load_begins_anew() -> None:
    estimate = LoadEstimate()
    estimate.note(0.0, 1.0)
    estimate.note(0.9, 2.0)
    estimate.note(0.1, 3.0)
    assert estimate.eta_s is None
    estimate.note(0.2, 4.0)
    assert estimate.eta_s == pytest.approx(8.0)
