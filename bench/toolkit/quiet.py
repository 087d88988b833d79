"""Measurements on a shared machine: wait until other programs are idle, and repeat disturbed measurements."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from edgepp.host_system.other_programs import OtherPrograms

QUIET_CORES = 0.1
"""Greatest number of cores that other programs may use."""
_SAMPLE_S = 0.2

T = TypeVar("T")


class Quiet:
    """Measuring with repetition: each measurement may wait and be repeated for ``patience_s`` seconds."""

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
            others = OtherPrograms()
            found = work()
            cores = others.cores()
            if best is None or cores < best[1]:
                best = found, cores
            if best[1] <= QUIET_CORES or time.perf_counter() > until_s:
                return best


def _wait(until_s: float) -> None:
    while time.perf_counter() < until_s:
        others = OtherPrograms()
        time.sleep(_SAMPLE_S)
        if others.cores() <= QUIET_CORES:
            return
