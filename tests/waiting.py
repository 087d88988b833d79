"""Waiting for what must come about, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 120.0
"""How long anything may take before a test gives up on it: several times what a loaded machine needs."""


def eventually(what: str, look: Callable[[], T], within_s: float = PATIENCE_S) -> T:
    """The first truth that ``look`` returns; fails when there is none in time."""
    until_s = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < until_s, f"after {within_s:.0f} s still not: {what}"
        time.sleep(0.02)
    return found
