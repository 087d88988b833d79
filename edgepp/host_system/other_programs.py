"""How much other programs keep this machine busy while something is measured."""

from __future__ import annotations

import time

import psutil


class OtherPrograms:
    """The processor time that all but this process and its descendants use from now on."""

    def __init__(self) -> None:
        self._began_s, self._before_s = time.monotonic(), _other_cpu_s()

    def cores(self) -> float:
        """The number of cores that they kept busy, on average; what was stolen from a virtual machine counts, too."""
        busy_s = _other_cpu_s() - self._before_s
        return max(0.0, busy_s) / max(1e-3, time.monotonic() - self._began_s)


def _other_cpu_s() -> float:
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
