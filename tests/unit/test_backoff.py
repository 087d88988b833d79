"""Waits before a retry."""

from __future__ import annotations

import pytest

from edgepp.backoff import doubled_s


@pytest.mark.parametrize(("doublings", "wait_s"), [(0, 0.5), (1, 1.0), (3, 4.0), (5, 10.0), (100_000, 10.0)])
def test_a_wait_doubles_up_to_its_maximum(doublings: int, wait_s: float) -> None:
    assert doubled_s(0.5, doublings, 10.0) == wait_s
