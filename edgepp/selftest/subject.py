"""The cluster that checks look at: that of this machine, or one of the selftest's own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from edgepp.benchmark.target import cluster
from edgepp.engine.request import GenerateOptions
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError, PairingError
from edgepp.python_api import Connection, connect
from edgepp.wire.address import Address

_LOOK_S = 0.2
"""Seconds between two looks at a cluster that is awaited."""
_OPEN_S = 20.0
"""How long a cluster may be busy or change its stages before the first check."""


@dataclass
class Observed:
    """An answer as the client saw it."""

    tokens: list[int] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    """Seconds from the question to each piece of text."""
    timing: Timing = field(default_factory=lambda: Timing(0.0))

    def longest_gap_s(self, since: int = 0) -> float:
        """Longest wait between two pieces of text, from piece number ``since`` on."""
        gaps = (later - earlier for earlier, later in itertools.pairwise(self.arrivals_s[max(0, since - 1) :]))
        return max(gaps, default=0.0)


class Subject:
    """A cluster that answers: by default the one that this machine belongs to."""

    def __init__(self, model: str = "", *, own: bool = False, peer: str | None = None) -> None:
        self.model = model
        self.own = own
        """Whether the selftest started it and may disturb it."""
        self._peer = peer

    @property
    def peers(self) -> list[Address]:
        """Where its coordinator is, if that is known beforehand."""
        return [Address.parse(self._peer)] if self._peer else []

    def connection(self) -> Connection:
        """A connection to its coordinator."""
        return connect(self._peer)

    def at_home(self) -> AbstractContextManager[None]:
        """Let this process speak as one of its machines."""
        return nullcontext()

    async def open(self) -> None:
        """Wait until the cluster is ready, and read its model.

        Raises:
            EdgeppError: the cluster is not reached, or does not answer, within 20 s.
            PairingError: this machine belongs to no cluster; known at once.
        """
        until_s = time.monotonic() + _OPEN_S
        while True:
            try:
                status = await self.status()
                cluster(status)  # refuses one that is not ready
                break
            except PairingError:
                raise
            except EdgeppError:
                if time.monotonic() >= until_s:
                    raise
            await asyncio.sleep(_LOOK_S)
        self.model = str(status["model"])

    async def ready(self, nodes: Collection[str] = ()) -> None:
        """Wait until it answers with all stages loaded, over the nodes of these names if any are given."""
        while True:
            with suppress(EdgeppError):  # its coordinator may be busy
                status = await self.status()
                present = {str(stage["node"]) for stage in status["stages"] if stage["address"]}
                if status["state"] == "ready" and present and present.issuperset(nodes):
                    return
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """End what was started."""

    async def status(self) -> Mapping[str, Any]:
        """Its state, as `edgepp status --json` prints it.

        Raises:
            EdgeppError: the coordinator does not answer.
        """
        with self.at_home():
            async with self.connection() as connection:
                return connection.status

    async def ask(
        self, prompt: str | list[int], tokens: int, on_piece: Callable[[int], None] = lambda _: None
    ) -> Observed:
        """A greedy answer of ``tokens`` tokens; ``on_piece`` is called with the number of pieces of text so far.

        Raises:
            EdgeppError: the answer failed.
        """
        with self.at_home():
            async with self.connection() as connection:
                asked_s, seen = time.perf_counter(), Observed()
                options = GenerateOptions(max_tokens=tokens, ignore_eos=True)
                answer = connection.ask(prompt, options, raw=isinstance(prompt, str))
                async for _ in answer:
                    seen.arrivals_s.append(time.perf_counter() - asked_s)
                    on_piece(len(seen.arrivals_s))
        seen.tokens, seen.timing = list(answer.token_ids), answer.timing
        return seen
