"""What checks share: the cluster they look at, and the way to say how far they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

from edgepp.benchmark.machine import busy, machine
from edgepp.benchmark.report import SingleResult
from edgepp.selftest.own_cluster import OwnCluster
from edgepp.selftest.subject import Subject

_Subject = TypeVar("_Subject", bound=Subject)

MODEL = "smollm2-135m"
"""Model of the selftest's own cluster."""


class Setting:
    """The clusters of one selftest, each opened when the first check needs it. Call ``close`` when done."""

    def __init__(
        self, *, cluster: bool, model: str | None = None, peer: str | None = None, say: Callable[[str], None]
    ) -> None:
        """With ``cluster``, look at this machine's; else, and for faults, at one of its own with ``model``."""
        self.cluster = cluster
        self.say = say
        self._model = model or MODEL
        self._peer = peer
        self.busy = busy(machine())
        """Whether other programs kept this machine busy before the first check, which loads it itself."""
        self.measured: tuple[SingleResult, SingleResult] | None = None
        """Rates of the cluster and of one process here, once a check has measured them."""
        self._own: OwnCluster | None = None
        self._real: Subject | None = None
        self._stack = AsyncExitStack()

    async def subject(self) -> Subject:
        """The cluster to look at, for checks that do not disturb it.

        Raises:
            EdgeppError: the cluster is not reached, or cannot run.
        """
        if not self.cluster:
            return await self.own()
        if self._real is None:
            self._real = await self._opened(Subject(peer=self._peer))
        return self._real

    async def own(self) -> OwnCluster:
        """The selftest's own cluster, which checks may disturb.

        Raises:
            EdgeppError: the cluster cannot run.
        """
        if self._own is None:
            self._own = await self._opened(OwnCluster(self._model, self.say))
        await self._own.ready()
        return self._own

    async def _opened(self, subject: _Subject) -> _Subject:
        await subject.open()
        self._stack.push_async_callback(subject.close)
        return subject

    async def model(self) -> str:
        """Name of the model that the looked-at cluster runs, or is to run."""
        return (await self.subject()).model if self.cluster else self._model

    async def close(self) -> None:
        """End the selftest's own cluster."""
        await self._stack.aclose()
