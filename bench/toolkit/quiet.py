"""Measurements on a shared machine: wait until other programs are idle, and repeat disturbed measurements."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

QUIET_CORES = 0.1
"""Greatest number of cores that other programs may use."""
_SAMPLE_S = 0.2

T = TypeVar("T")


class Quiet:
    """Measures with repetition: each measurement may wait and be repeated for ``patience_s`` seconds."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s

    def measure(self, work: Callable[[], T]) -> tuple[T, float]:
        """Run ``work`` while other programs are idle; returns its result and the cores that other programs used.

        Of several tries the least disturbed one counts.
        """
        best: tuple[T, float] | None = None
        until_s = time.perf_counter() + self._patience_s
        while True:
            _wait(until_s)
            before_s, before = time.perf_counter(), _other_cpu_s()
            found = work()
            took_s, after = time.perf_counter() - before_s, _other_cpu_s()
            others = max(0.0, after - before) / took_s
            if best is None or others < best[1]:
                best = found, others
            if best[1] <= QUIET_CORES or time.perf_counter() > until_s:
                return best


def _wait(until_s: float) -> None:
    while time.perf_counter() < until_s:
        before = _other_cpu_s()
        time.sleep(_SAMPLE_S)
        if (_other_cpu_s() - before) / _SAMPLE_S <= QUIET_CORES:
            return


def _other_cpu_s() -> float:
    """CPU seconds of all processes on this machine except this process and its descendants."""
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
