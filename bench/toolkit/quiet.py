"""Measurements on a machine that others use too: wait until they are quiet, and measure again what they disturbed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

QUIET = 0.1
"""Cores that other programs may have."""
_LOOK_S = 0.2

T = TypeVar("T")


class Quiet:
    """How long each measurement may wait for others, and be done again, before it is taken as it is."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s

    def measure(self, work: Callable[[], T]) -> tuple[T, float]:
        """Do ``work`` while nobody else does much; what came of it, and how many cores others had meanwhile.

        Of several tries the least disturbed one counts.
        """
        best: tuple[T, float] | None = None
        until_s = time.perf_counter() + self._patience_s
        while True:
            _wait(until_s)
            before_s, before = time.perf_counter(), _seconds()
            found = work()
            took_s, after = time.perf_counter() - before_s, _seconds()
            others = max(0.0, after - before) / took_s
            if best is None or others < best[1]:
                best = found, others
            if best[1] <= QUIET or time.perf_counter() > until_s:
                return best


def _wait(until_s: float) -> None:
    while time.perf_counter() < until_s:
        before = _seconds()
        time.sleep(_LOOK_S)
        if (_seconds() - before) / _LOOK_S <= QUIET:
            return


def _seconds() -> float:
    """Processor seconds of everything on this machine but this process and those that it started."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    busy -= getattr(times, "guest_nice", 0.0)
    me = psutil.Process()
    own = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        own += spent.user + spent.system
    return float(busy - own)
