"""A connection to the cluster of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgepp.cluster.identity import load_cluster
from edgepp.coordinator.client import CoordinatorClient, connect_coordinator
from edgepp.coordinator.json_codec import decode_sampling
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.ring import StageInfo
from edgepp.errors import EdgeppError
from edgepp.model.catalogue.source import resolve
from edgepp.model.text.conversation import Prompt
from edgepp.python_api.answer import Answer, Begun
from edgepp.python_api.async_resource import AsyncResource
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.python_api.question import Question, choice_options, conversation_or_raw
from edgepp.tracing.trace_view import TraceView
from edgepp.wire.address import Address


class Connection(AsyncResource):
    """The cluster of this machine, wherever its coordinator is. Use it in an ``async with`` statement.

    Each answer opens a connection of its own, so after a coordinator was lost the next answer looks for it again.
    """

    def __init__(self, peer: str | None = None) -> None:
        self._peers = [Address.parse(peer)] if peer else []
        self._client: CoordinatorClient | None = None

    @property
    def paired(self) -> bool:
        """Whether this machine belongs to a cluster; known before the connection is open."""
        return load_cluster() is not None

    @property
    def at_peer(self) -> bool:
        """Whether the coordinator answered at the address given as ``peer``."""
        return self._known.address in self._peers

    @property
    def status(self) -> Mapping[str, Any]:
        """The state of the cluster when it was last contacted, as `edgepp status --json` prints it."""
        return self._known.status

    @property
    def model(self) -> str:
        """The name of the model that the cluster runs."""
        return self._known.model

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options that the model recommends; `edgepp chat` uses them, ``ask`` is greedy by default."""
        return decode_sampling(self.status.get("sampling"))

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """The stages when the cluster was last contacted; empty while the model loads."""
        return self._known.stages

    def runs(self, model: str) -> bool:
        """Whether the cluster runs ``model``, under this name or another one.

        Raises:
            ModelError: ``model`` is unknown.
        """
        return resolve(model) == resolve(self.model)

    async def open(self) -> None:
        """Contact the coordinator, and read the status of the cluster.

        Raises:
            PairingError: this machine belongs to no cluster, or is not admitted.
            PeerLost: the coordinator is not found.
        """
        await run_in_thread(lambda _: self._connect().close(), lambda _: None)

    async def close(self) -> None:
        """Forget the status; no connection is kept between answers."""
        self._client = None

    def ask(self, prompt: Question, options: GenerateOptions | None = None, *, raw: bool = False) -> Answer:
        """An answer to ``prompt``, which begins when it is read.

        Args:
            prompt: A question; a conversation, or its messages; or token ids.
            options: Length, sampling and constraint; greedy and unconstrained by default.
            raw: Send a text unchanged, without the chat template of the model.

        Raises:
            UsageError: ``raw`` with a conversation.
        """
        sent = conversation_or_raw(prompt, raw=raw)
        return Answer(lambda: self._begin(sent, options or GenerateOptions()))

    def choices(
        self, prompt: Question, n: int, options: GenerateOptions | None = None, *, raw: bool = False
    ) -> list[Answer]:
        """``n`` answers to one prompt, computed together when they are read together.

        With a seed, the first answer uses it, and each further one the next number.

        Raises:
            UsageError: ``n`` is not from 1 to 16, or ``raw`` with a conversation.
        """
        return [self.ask(prompt, one, raw=raw) for one in choice_options(n, options)]

    async def trace(self, request_id: str) -> TraceView:
        """The trace of a recent request, such as ``answer.request_id``: times on coordinator and stages.

        Raises:
            EdgeppError: the coordinator keeps no such trace, or is not found.
        """

        def fetch(_: threading.Event) -> TraceView:
            with self._connect() as client:
                return client.trace(request_id)

        return await run_in_thread(fetch, lambda _: None)

    @property
    def _known(self) -> CoordinatorClient:
        if self._client is None:
            raise EdgeppError("the connection is not open", "use it in an `async with` statement")
        return self._client

    def _connect(self) -> CoordinatorClient:
        self._client = client = connect_coordinator(self._peers)
        return client

    @contextmanager
    def _begin(self, prompt: Prompt, options: GenerateOptions) -> Iterator[Begun]:
        with self._connect() as client:
            answer = client.ask(prompt, options)
            yield Begun(answer, answer.cancel, lambda: answer.waiting, lambda: answer.request_id)


def connect(peer: str | None = None) -> Connection:
    """A connection to the cluster of this machine; ``peer`` is the coordinator's ``HOST:PORT``, if it is not found."""
    return Connection(peer)
