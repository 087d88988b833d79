"""A cluster that this program serves: the coordinator and this machine's own part."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from edgepp.api.background import Background
from edgepp.coordinator.client import CoordinatorClient
from edgepp.coordinator.composition import PORT, CoordinatorService, ServeOptions
from edgepp.layers import LayerRange
from edgepp.node.resources import parse_bytes
from edgepp.placement.types import Policy
from edgepp.wire.field_types import Verb
from edgepp.wire.transport import Address


class ServedCluster(Background[CoordinatorService]):
    """A cluster that this program serves. Use it in an ``async with`` statement.

    Chat with it by ``connect`` or `edgepp chat`, here or on any machine that joined.
    """

    def __init__(self, options: ServeOptions) -> None:
        super().__init__(lambda tell, progress, given_up: CoordinatorService(options, tell, progress, given_up))

    @property
    def address(self) -> str:
        """Where nodes and chats on this machine reach the coordinator, as ``HOST:PORT``."""
        return str(self._service.coordinator.local_address)

    @property
    def status(self) -> Mapping[str, Any]:
        """The cluster's state: what `edgepp status --json` prints."""
        return self._service.report()

    @property
    def loading(self) -> Mapping[str, float]:
        """What is being fetched or loaded on the nodes, by name, and the share that is done, from 0 to 1."""
        progress = list(self._service.coordinator.rollout.progress.values())
        return {one.what: min(1.0, one.done_bytes / one.total_bytes) for one in progress if one.total_bytes}

    async def ready(self) -> None:
        """Wait until the cluster can answer.

        Raises:
            EdgeppError: the cluster was closed, or a part of it ended by itself.
        """
        while self._service.pipeline_manager.pipeline is None:
            await self._next_change()

    async def invite(self) -> str:
        """A code with which one other machine can join, within ten minutes: `edgepp join CODE`, ``edgepp.join(CODE)``.

        Raises:
            EdgeppError: too many invitations are open, or the port after the cluster's is taken.
        """
        return str((await self._call("invite"))["code"])

    async def token(self) -> str:
        """A token with which machines can join until it is withdrawn: ``edgepp.join(token=...)``.

        Raises:
            EdgeppError: the token cannot be kept.
        """
        return str((await self._call("token"))["token"])

    async def _call(self, verb: Verb) -> Mapping[str, Any]:
        def call(line: CoordinatorClient) -> Mapping[str, Any]:
            with line:
                return line.call(verb)

        service = self._service
        return await asyncio.to_thread(lambda: call(service.connect()))


def serve(
    model: str = ServeOptions.model,
    *,
    listen: str | None = None,
    stages: int = ServeOptions.stages,
    layers: str | None = None,
    memory: int | str | None = None,
    policy: Policy = ServeOptions.policy,
    context: int = ServeOptions.context,
    max_sequences: int = ServeOptions.max_sequences,
    backend: str = ServeOptions.backend,
    threads: int | None = None,
    exact: bool = False,
    kv_bits: int | None = None,
    speculate: str = ServeOptions.speculate,
) -> ServedCluster:
    """A cluster that this program serves, as `edgepp serve` does.

    Args:
        model: A name such as ``smollm2-135m``, a repository of the hub, or a folder.
        listen: Where nodes and chats reach the coordinator, as ``HOST:PORT``; every address and port 5700 unless given.
        stages: Stage processes on this machine; 0 only coordinates.
        layers: The first and last layer that this machine is to run, like ``0-14``; planned unless given.
        memory: The most that the model may use here, in bytes or like ``8GB``; all that is free unless given.
        policy: ``memory`` spreads layers by memory; ``speed`` and ``throughput`` by measured speed.
        context: Positions of a conversation for which there is to be memory.
        max_sequences: Conversations at a time for which there is to be memory.
        backend: ``auto``, ``mlx`` or ``onnx``.
        threads: Compute threads of this machine; all cores unless given.
        exact: Float32 arithmetic on every node, so that tokens do not depend on the split; slower.
        kv_bits: Bits of a key or value in the KV caches, 8 or 4; None for the backend's own floats.
        speculate: What guesses tokens ahead: ``lookup`` in the text so far, a small model's name, or ``off``.

    Raises:
        UsageError: an option makes no sense, or two of them exclude each other.
    """
    return ServedCluster(
        ServeOptions(
            model=model,
            listen=Address.parse(listen) if listen else Address("*", PORT),
            stages=stages,
            pinned=LayerRange.parse(layers) if layers else None,
            memory=parse_bytes(memory) if isinstance(memory, str) else memory,
            policy=policy,
            context=context,
            max_sequences=max_sequences,
            backend=backend,
            threads=threads,
            exact=exact,
            kv_bits=kv_bits,
            speculate=speculate,
        )
    )
