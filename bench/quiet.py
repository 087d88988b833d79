"""Measurements on a machine that others use too: wait until they are quiet, and measure again what they disturbed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

QUIET = 0.1
"""Cores that other programs may have."""
_LOOK_S = 0.3
_WAIT_S = 1.0

T = TypeVar("T")


class Quiet:
    """Patience, in seconds, for a whole run: when it is used up, things are taken as they are."""

    def __init__(self, patience_s: float) -> None:
        self._left_s = patience_s

    def measure(self, work: Callable[[], T]) -> tuple[T, float]:
        """Do ``work`` while nobody else does much; what came of it, and how many cores others had meanwhile.

        Of several tries the least disturbed one counts.
        """
        best: tuple[T, float] | None = None
        while True:
            self._wait()
            before_s, before = time.perf_counter(), _seconds()
            found = work()
            took_s, after = time.perf_counter() - before_s, _seconds()
            others = max(0.0, after - before) / took_s
            if best is None or others < best[1]:
                best = found, others
            if best[1] <= QUIET or self._left_s <= 0:
                return best
            self._left_s -= took_s

    def _wait(self) -> None:
        while self._left_s > 0:
            before = _seconds()
            time.sleep(_LOOK_S)
            if (_seconds() - before) / _LOOK_S <= QUIET:
                return
            time.sleep(_WAIT_S)
            self._left_s -= _LOOK_S + _WAIT_S


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
