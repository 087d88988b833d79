"""This machine's cluster, wherever its coordinator is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from edgepp.api.answer import Answer, Begun
from edgepp.api.cancellable_thread import apart
from edgepp.api.question import Prompt, choice_options, conversation_or_raw
from edgepp.cluster.identity import load_cluster
from edgepp.coordinator.client import CoordinatorClient, connect_coordinator
from edgepp.coordinator.json_codec import decode_sampling
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.ring import StageInfo
from edgepp.errors import EdgeppError
from edgepp.model.catalogue.source import resolve
from edgepp.wire.transport import Address


class Connection:
    """This machine's cluster, wherever its coordinator is. Use it in an ``async with`` statement.

    Every answer has a connection of its own, so a coordinator that was lost is looked for anew by the next one.
    """

    def __init__(self, peer: str | None = None) -> None:
        self._peers = [Address.parse(peer)] if peer else []
        self._line: CoordinatorClient | None = None

    @property
    def paired(self) -> bool:
        """Whether this machine belongs to a cluster at all; known before it is open."""
        return load_cluster() is not None

    @property
    def at_peer(self) -> bool:
        """Whether its coordinator is where ``peer`` said."""
        return self._known.address in self._peers

    @property
    def status(self) -> Mapping[str, Any]:
        """The cluster's state as last heard: what `edgepp status --json` prints."""
        return self._known.status

    @property
    def model(self) -> str:
        """The name of the model that the cluster runs."""
        return self._known.model

    @property
    def sampling(self) -> SamplingOptions:
        """See ``Engine.sampling``."""
        return decode_sampling(self.status.get("sampling"))

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """What ran where when it was last heard; nothing while it loads."""
        return self._known.stages

    def runs(self, model: str) -> bool:
        """Whether ``model`` is what the cluster runs, under this name or another.

        Raises:
            ModelError: there is no such model.
        """
        return resolve(model) == resolve(self.model)

    async def open(self) -> None:
        """See that the cluster answers, and what it runs.

        Raises:
            PairingError: this machine belongs to none, or is not admitted.
            PeerLost: its coordinator is nowhere to be found.
        """
        await apart(lambda _: self._connect().close(), lambda _: None)

    async def close(self) -> None:
        """Forget what was heard; nothing is held between answers."""
        self._line = None

    async def __aenter__(self) -> Connection:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def ask(self, prompt: Prompt, options: GenerateOptions | None = None, *, raw: bool = False) -> Answer:
        """See ``Engine.ask``; the owner is this machine.

        Raises:
            UsageError: a conversation is to be raw.
        """
        asked = conversation_or_raw(prompt, raw=raw)
        return Answer(lambda: self._begin(asked, options or GenerateOptions()))

    def choices(
        self, prompt: Prompt, n: int, options: GenerateOptions | None = None, *, raw: bool = False
    ) -> list[Answer]:
        """See ``Engine.choices``.

        Raises:
            UsageError: ``n`` is out of bounds, or a conversation is to be raw.
        """
        return [self.ask(prompt, one, raw=raw) for one in choice_options(n, options)]

    @property
    def _known(self) -> CoordinatorClient:
        if self._line is None:
            raise EdgeppError("the connection is not open", "use it in an `async with` statement")
        return self._line

    def _connect(self) -> CoordinatorClient:
        self._line = line = connect_coordinator(self._peers)
        return line

    @contextmanager
    def _begin(self, prompt: Prompt, options: GenerateOptions) -> Iterator[Begun]:
        with self._connect() as line:
            answer = line.ask(prompt, options)
            yield Begun(answer, answer.cancel, lambda: answer.waiting)


def connect(peer: str | None = None) -> Connection:
    """This machine's cluster; ``peer`` (``HOST:PORT``) says where its coordinator is, if it is not found."""
    return Connection(peer)
