"""The parent's handle on the processes of a tensor-parallel stage on this machine, which live and end together."""

from __future__ import annotations

import itertools
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from edgepp.errors import EdgeppError
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.stage_handle import OnProgress, Ready, StageProcess, memory_hint
from edgepp.stage_process.config import RankConfig, StageConfig, lost_rank

_HOST = "127.0.0.1"
"""Where the ranks of one machine listen for each other."""


class StageRanks:
    """One child process per rank; rank 0 is the stage for the coordinator. Must be stopped."""

    def __init__(self, weights: Sequence[int], configure: Callable[[RankConfig | None], StageConfig]) -> None:
        """Start the children of ranks with these ``weights``; ``configure`` makes the configuration of each.

        The ranks of a last stage share the output head, where its tensors are on this disk.

        Raises:
            EdgeppError: A child died at once.
        """
        group, head = secrets.randbits(62), _share_head(configure(None))
        self.weights = tuple(weights)
        self._children: list[StageProcess] = []
        self._have_met = self._stopping = False
        self._lock = threading.Lock()
        self._ended_first: int | None = None
        """The rank whose process ended before all others."""
        self._on_end: list[Callable[[], None]] = []
        try:
            with ExitStack() as ours:
                for rank, descriptors in enumerate(socket_pairs(len(weights), ours)):
                    config = configure(RankConfig(group, rank, self.weights, descriptors, _HOST))
                    self._children.append(StageProcess(replace(config, head=head)))
        except EdgeppError:
            self.stop()
            raise

    @property
    def config(self) -> StageConfig:
        """Configuration of rank 0."""
        return self._children[0].config

    @property
    def pid(self) -> int:
        """Process id of rank 0."""
        return self._children[0].pid

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of all ranks, in rank order."""
        return tuple(child.pid for child in self._children)

    def meet(self) -> None:
        """Let the ranks connect to each other and load their parts; a second call does nothing.

        Raises:
            EdgeppError: A child reported an error or died; all have ended then.
        """
        if self._have_met:
            return
        try:
            addresses = [child.wait_rank() for child in self._children]
        except EdgeppError:
            self.stop()
            raise
        for child in self._children:
            child.join_ranks(addresses)
        self._have_met = True

    def wait_ready(self, on_progress: OnProgress | None = None) -> Ready:
        """Wait until all ranks have loaded their parts; the report of rank 0, with the memory of all.

        ``on_progress`` is told the progress of rank 0.

        Raises:
            EdgeppError: A child reported an error or died; all have ended then.
        """
        self.meet()
        first, *others = self._children
        try:
            ready = first.wait_ready(on_progress)
            resident_bytes = sum(child.wait_ready().resident_bytes for child in others)
        except EdgeppError:
            self.stop()
            raise
        for rank, child in enumerate(self._children):
            child.on_end(partial(self._ended, rank))
        return replace(ready, resident_bytes=ready.resident_bytes + resident_bytes)

    def admit(self, keys: Sequence[str]) -> None:
        """Admit exactly these keys to the sockets of the children, from now on."""
        for child in self._children:
            child.admit(keys)

    def on_end(self, act: Callable[[], None]) -> None:
        """Call ``act`` as soon as a rank has ended, for whatever reason, and all others are killed.

        Call this after ``wait_ready``; ``act`` is called in another thread, or at once where a rank has ended already.
        """
        with self._lock:
            if self._ended_first is None:
                self._on_end.append(act)
                return
        act()

    def _ended(self, rank: int) -> None:
        with self._lock:
            if self._ended_first is not None:
                return
            self._ended_first = rank
            acts = self._on_end
        if not self._stopping:
            self.kill()
        for act in acts:
            act()

    def why_ended(self) -> tuple[str, str]:
        """Why the group, of which a rank has ended by itself, did: a sentence that names the rank, and a hint."""
        rank = self._ended_first or 0
        self.stop()
        status = self._children[rank].stop()
        if (lost := lost_rank(status, len(self._children))) is not None:
            return f"rank {lost} of its stage hung, and all ranks were ended", ""
        return f"rank {rank} of its stage ended by itself (exit status {status})", memory_hint(status)

    def kill(self) -> None:
        """End all children at once."""
        for child in self._children:
            child.kill()

    def stop(self) -> None:
        """End all children, after some seconds by force."""
        self._stopping = True
        for child in self._children:
            child.end_input()
        for child in self._children:
            child.stop()


StageChild: TypeAlias = StageProcess | StageRanks
"""The process or processes of a stage on this machine."""


def start_stage(weights: Sequence[int], configure: Callable[[RankConfig | None], StageConfig]) -> StageChild:
    """Start the process of a stage, or one per rank where there are several ``weights``.

    Raises:
        EdgeppError: A child died at once.
    """
    return StageProcess(configure(None)) if len(weights) == 1 else StageRanks(weights, configure)


def _share_head(config: StageConfig) -> bool:
    """Whether the layers are the last ones, and the tensors of the output head are on this disk."""
    checkpoint = Checkpoint.open(Path(config.path))
    return config.layers.stop == checkpoint.num_layers and checkpoint.has_head


def socket_pairs(ranks: int, owned: ExitStack) -> list[tuple[int, ...]]:
    """For each rank the descriptors of its sockets to all ranks, -1 for itself; ``owned`` closes them in this process.

    They are inherited by the child that is told so, and by no other.
    """
    found = [[-1] * ranks for _ in range(ranks)]
    for one, other in itertools.combinations(range(ranks), 2):
        ends = socket.socketpair()
        found[one][other], found[other][one] = (owned.enter_context(end).fileno() for end in ends)
    return [tuple(descriptors) for descriptors in found]
