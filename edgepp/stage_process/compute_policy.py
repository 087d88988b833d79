"""How processes that compute share the cores of one machine: threads, spinning, waiting awake, huge pages.

Every role takes its policy from here: a model in one process, local stage processes, a node's stage processes, and
measurements. No process is pinned to a core.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import psutil

from edgepp.backend.base import BackendOptions
from edgepp.errors import UsageError

_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if platform.system() == "Linux" else {}
"""Decoding reads every weight once per token; huge pages made it 3 to 26 % faster (bench/LOG.md)."""


def physical_cores() -> int:
    """Cores that this process may use, not counting hyper-threads."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@dataclass(frozen=True)
class ComputePolicy:
    """How one process that computes uses the cores of its machine."""

    threads: int
    """Compute threads of the process."""
    spin: bool = False
    """Idle compute threads spin: faster where the process has the machine to itself, ruinous where it has not."""
    awake: bool = False
    """A stage waits for the next frame without sleeping: with a core for each thread, that makes a hop cheaper."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"a stage needs at least 1 thread, not {self.threads}")

    @classmethod
    def alone(cls, threads: int | None = None) -> ComputePolicy:
        """The policy of a process that runs a whole model by itself; all cores unless ``threads`` says otherwise."""
        return cls(_or(threads, physical_cores()), spin=True)

    @classmethod
    def shared(cls, threads: int | None = None, processes: int = 1) -> ComputePolicy:
        """The policy of each of ``processes`` stages of this machine, which feeds them itself.

        ``threads`` is the number per process; None divides the cores between the processes.
        """
        each = _or(threads, max(1, physical_cores() // max(1, processes)))
        return cls(each, awake=each * processes <= physical_cores())

    @classmethod
    def node(cls, threads: int | None = None, processes: int = 1) -> ComputePolicy:
        """The policy of each of ``processes`` stages of a node, which a coordinator feeds.

        ``threads`` is the number of the whole node, divided between the processes; all cores unless given.
        """
        each = _or(threads, physical_cores())
        each = max(1, each // processes) if processes > 1 and each > 0 else each
        whole = processes == 1 and each == physical_cores()
        return cls(each, spin=whole, awake=each * processes <= physical_cores())

    def backend_options(self, *, exact: bool = False, kv_bits: int | None = None) -> BackendOptions:
        """What a backend is told."""
        return BackendOptions(threads=self.threads, exact=exact, spin=self.spin, kv_bits=kv_bits)


def _or(threads: int | None, default: int) -> int:
    return default if threads is None else threads


def stage_environment(threads: int) -> dict[str, str]:
    """The environment variables of a child process that computes with ``threads`` threads."""
    return {**_HUGE_PAGES, **os.environ, "OMP_NUM_THREADS": str(threads)}
