"""Shares of a machine's cores for its computing processes: number of threads, spinning, busy waiting, huge pages.

Every process that computes takes its policy from this module: a model in one process, local stage processes, the stage
processes of a node, and the speed probe. No process is pinned to a core.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import psutil

from edgepp.backend.base import BackendOptions
from edgepp.errors import UsageError

_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if platform.system() == "Linux" else {}
"""Decoding reads every weight once per token; huge pages made decoding 3 to 26 % faster (bench/LOG.md)."""

_MAX_THREADS = 1024
_MAX_HEAD_THREADS = 4
"""Threads of the output head at most: reading its weights takes few cores all bandwidth, and waking more takes time."""


def physical_cores() -> int:
    """Number of cores that this process may use, without hyper-threads."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@dataclass(frozen=True)
class ComputePolicy:
    """Use of a machine's cores by one process that computes."""

    threads: int
    """Compute threads of the process."""
    spin: bool = False
    """Whether idle compute threads spin: faster for the only computing process of a machine, very slow for several."""
    awake: bool = False
    """Whether a stage waits for the next frame, or the engine for the next result, without sleeping.

    That makes a hop faster if each thread has a core.
    """

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"a stage needs at least 1 thread, not {self.threads}")
        if self.threads > _MAX_THREADS:  # starting them would take minutes, in which the library cannot be stopped
            raise UsageError(
                f"{self.threads} threads are too many", f"use as many as there are cores, {physical_cores()}"
            )

    @classmethod
    def alone(cls, threads: int | None = None) -> ComputePolicy:
        """Policy of a process that runs a whole model; ``threads`` defaults to all cores.

        Raises:
            UsageError: ``threads`` is less than 1, or far more than a machine has.
        """
        return cls(_or(threads, physical_cores()), spin=True)

    @classmethod
    def shared(cls, threads: int | None = None, processes: int = 1) -> ComputePolicy:
        """Policy of each of ``processes`` stage processes on the machine of their coordinator.

        ``threads`` is the number per process; None divides the cores between the processes.

        Raises:
            UsageError: ``threads`` is less than 1, or far more than a machine has.
        """
        per_process = _or(threads, max(1, physical_cores() // max(1, processes)))
        return cls(per_process, awake=per_process * processes <= physical_cores())

    @classmethod
    def node(cls, threads: int | None = None, processes: int = 1) -> ComputePolicy:
        """Policy of each of ``processes`` stage processes of a node.

        ``threads`` is the number of the whole node, divided between the processes; None for all cores.

        Raises:
            UsageError: ``threads`` is less than 1, or far more than a machine has.
        """
        per_process = _or(threads, physical_cores())
        per_process = max(1, per_process // processes) if processes > 1 and per_process > 0 else per_process
        has_all_cores = processes == 1 and per_process == physical_cores()
        return cls(per_process, spin=has_all_cores, awake=per_process * processes <= physical_cores())

    @classmethod
    def coordinator(cls, threads: int, processes: int) -> ComputePolicy | None:
        """Policy of engine and model ends on the machine of ``processes`` stage processes of ``threads`` threads each.

        None where these take all cores, so that ends and stages take turns. Without stages the ends have the
        ``threads``, else a few of the cores that the stages leave.
        """
        if not processes:
            return cls(threads, awake=physical_cores() > 1)
        free = physical_cores() - threads * processes
        # With one free core, a waiting engine would take it from ZeroMQ's threads, which carry the result to it.
        return cls(min(free, _MAX_HEAD_THREADS), awake=free > 1) if free > 0 else None

    def backend_options(self, *, exact: bool = False, kv_bits: int | None = None) -> BackendOptions:
        """Options for a backend that computes by this policy."""
        return BackendOptions(threads=self.threads, exact=exact, spin=self.spin, kv_bits=kv_bits)


def _or(threads: int | None, default: int) -> int:
    return default if threads is None else threads


def stage_environment(threads: int) -> dict[str, str]:
    """Environment variables of a child process that computes with ``threads`` threads."""
    return {**_HUGE_PAGES, **os.environ, "OMP_NUM_THREADS": str(threads)}
