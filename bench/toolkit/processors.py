"""CPU pinning of measured processes. Standard library only, because the programs of other engines use it too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol


class HasPid(Protocol):
    """A stage, or another object with its own process."""

    @property
    def pid(self) -> int:
        """Process id."""


def pin(pid: int, cpus: Sequence[int]) -> None:
    """Pin every thread of a process, and threads that they start later, to ``cpus``."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


def pin_stages(stages: Iterable[HasPid], threads: int) -> list[list[int]] | None:
    """Pin each stage to its own ``threads`` CPUs; returns the CPUs, or None if nothing could be pinned."""
    pids = [stage.pid for stage in stages]
    shares = share_cpus(len(pids), threads)
    for pid, cpus in zip(pids, shares or (), strict=False):
        pin(pid, cpus)
    return shares


def share_cpus(groups: int, size: int) -> list[list[int]] | None:
    """Disjoint groups of ``size`` CPUs, first hardware threads of all cores first; None if the system cannot pin."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (_index_in_core(cpu), cpu))
    if len(cpus) < groups * size:
        return None
    return [cpus[group * size : (group + 1) * size] for group in range(groups)]


def _index_in_core(cpu: int) -> int:
    """Index of the hardware thread in its core."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        parts = [part.split("-") for part in file.read_text(encoding="ascii").strip().split(",")]
    except OSError:
        return 0
    siblings = [n for part in parts for n in range(int(part[0]), int(part[-1]) + 1)]
    return siblings.index(cpu)
