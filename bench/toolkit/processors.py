"""CPUs for processes that are measured at the same time. Standard library only: sides of other engines use this too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol


class HasPid(Protocol):
    """A stage, or anything else with a process of its own."""

    @property
    def pid(self) -> int:
        """Process id."""


def pin(pid: int, cpus: Sequence[int]) -> None:
    """Hold every thread of a process, and every thread that those start later, to ``cpus``."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


def pin_stages(stages: Iterable[HasPid], threads: int) -> list[list[int]] | None:
    """Pin each stage to ``threads`` CPUs of its own: which ones; None where that cannot be, and nothing is pinned."""
    pids = [stage.pid for stage in stages]
    shares = share_cpus(len(pids), threads)
    for pid, cpus in zip(pids, shares or (), strict=False):
        pin(pid, cpus)
    return shares


def share_cpus(groups: int, each: int) -> list[list[int]] | None:
    """Disjoint groups of ``each`` CPUs to pin to, cores before their hyper-threads; None where that cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (_place_in_core(cpu), cpu))
    if len(cpus) < groups * each:
        return None
    return [cpus[group * each : (group + 1) * each] for group in range(groups)]


def _place_in_core(cpu: int) -> int:
    """0 for a core's first hardware thread, 1 for its second, ..."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        parts = [part.split("-") for part in file.read_text(encoding="ascii").strip().split(",")]
    except OSError:
        return 0
    siblings = [n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)]
    return siblings.index(cpu)
