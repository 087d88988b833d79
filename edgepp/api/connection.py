"""This machine's cluster, wherever its coordinator is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from edgepp.api.answer import Answer, Begun
from edgepp.api.apart import apart
from edgepp.api.question import Prompt, each, worded
from edgepp.cluster.identity import Cluster, Identity, load_cluster, load_identity
from edgepp.engine.request import GenerateOptions
from edgepp.engine.ring import StageInfo
from edgepp.errors import EdgeppError, PairingError
from edgepp.model.source import resolve
from edgepp.serve.client import Served, ServedAnswer
from edgepp.wire.messages import Message
from edgepp.wire.transport import Address


class Connection:
    """This machine's cluster, wherever its coordinator is. Use it in an ``async with`` statement.

    Every answer has a connection of its own, so a coordinator that was lost is looked for anew by the next one.
    """

    def __init__(self, peer: str | None = None) -> None:
        self._peers = [Address.parse(peer)] if peer else []
        self._line: _Line | None = None

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
        asked = worded(prompt, raw=raw)
        return Answer(lambda: self._begin(asked, options or GenerateOptions()))

    def choices(
        self, prompt: Prompt, n: int, options: GenerateOptions | None = None, *, raw: bool = False
    ) -> list[Answer]:
        """See ``Engine.choices``.

        Raises:
            UsageError: ``n`` is out of bounds, or a conversation is to be raw.
        """
        return [self.ask(prompt, one, raw=raw) for one in each(n, options)]

    @property
    def _known(self) -> _Line:
        if self._line is None:
            raise EdgeppError("the connection is not open", "use it in an `async with` statement")
        return self._line

    def _connect(self) -> _Line:
        cluster = load_cluster()
        if cluster is None:
            raise PairingError(
                "this machine belongs to no cluster",
                "start one with `edgepp serve`, or join one with `edgepp join CODE`",
            )
        self._line = line = _Line(load_identity(), cluster, self._peers)
        return line

    @contextmanager
    def _begin(self, prompt: Prompt, options: GenerateOptions) -> Iterator[Begun]:
        line = self._connect()
        with line:
            yield Begun(line.ask(prompt, options), line.stop.set)


def connect(peer: str | None = None) -> Connection:
    """This machine's cluster; ``peer`` (``HOST:PORT``) says where its coordinator is, if it is not found."""
    return Connection(peer)


class _Line(Served):
    """A connection for one answer, which another thread may ``stop``."""

    def __init__(self, identity: Identity, cluster: Cluster, peers: Sequence[Address]) -> None:
        super().__init__(identity, cluster, peers)
        self.stop = threading.Event()
        self._answer: ServedAnswer | None = None

    def ask(self, prompt: Prompt, options: GenerateOptions) -> ServedAnswer:
        """See ``Served.ask``."""
        self._answer = super().ask(prompt, options)
        return self._answer

    def listen(self) -> Iterator[tuple[Message, list[memoryview]]]:
        """See ``Served.listen``; the coordinator speaks every second, so that is how soon a stop is noticed."""
        for said in super().listen():
            if self._answer is not None and self.stop.is_set():
                self.stop.clear()
                self._answer.cancel()
            yield said
