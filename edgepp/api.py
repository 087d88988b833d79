"""edgepp from Python: the same engine that the commands use, for ``asyncio``.

    async with edgepp.Engine("smollm2-135m", stages=2) as engine:
        async for text in engine.ask("Why is the sky blue?"):
            print(text, end="")

    async with edgepp.connect() as cluster:
        answer = await cluster.ask("Why is the sky blue?").whole()

Several answers may be under way at once; each is computed together with the others. An answer that nobody goes on
reading is cancelled.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from edgepp.backend.device import release_thread
from edgepp.engine.asking import Model
from edgepp.engine.live import FinishReason
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import GenerateOptions, Timing
from edgepp.engine.ring import StageInfo
from edgepp.errors import EdgeppError
from edgepp.serve.client import Served, served
from edgepp.wire.transport import Address

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""A user's question, or a conversation of ``{"role", "content"}``; both go through the model's chat template."""


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    timing: Timing
    stages: tuple[StageInfo, ...]


class Engine:
    """A model on this machine, over ``stages`` processes or in this one. Use it in an ``async with`` statement."""

    def __init__(
        self,
        model: str,
        *,
        stages: int | None = None,
        backend: str = "auto",
        threads: int | None = None,
        exact: bool = False,
        speculate: str = "lookup",
    ) -> None:
        """``speculate`` guesses tokens ahead: from the text so far, by a small model of that name, or ``off``."""
        self._options = PipelineOptions(
            model, stages=stages, backend=backend, threads=threads, exact=exact, speculate=speculate
        )
        self._pipeline: Pipeline | None = None

    async def __aenter__(self) -> Engine:
        """Fetch and load the model.

        Raises:
            EdgeppError: one sentence about what keeps it from running.
        """
        self._pipeline = await asyncio.to_thread(self._open)
        return self

    def _open(self) -> Pipeline:
        try:
            return Pipeline(self._options)
        finally:
            release_thread()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pipeline is not None:
            await asyncio.to_thread(self._pipeline.close)

    def ask(self, prompt: Prompt, options: GenerateOptions | None = None) -> Answer:
        """Begin an answer.

        Raises:
            EdgeppError: the engine is not open.
        """
        pipeline = self._pipeline
        if pipeline is None:
            raise EdgeppError("the engine is not open", "use it in an `async with` statement")
        return Answer(lambda: nullcontext(pipeline), prompt, options or GenerateOptions())


class Connection:
    """This machine's cluster, wherever its coordinator is. Use it in an ``async with`` statement."""

    def __init__(self, peer: str | None = None) -> None:
        self._peers = [Address.parse(peer)] if peer else []

    async def __aenter__(self) -> Connection:
        """See that the cluster answers.

        Raises:
            PairingError: this machine belongs to none, or is not admitted.
            PeerLost: its coordinator is nowhere to be found.
        """
        found = await asyncio.to_thread(self._connect)
        await asyncio.to_thread(found.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def ask(self, prompt: Prompt, options: GenerateOptions | None = None) -> Answer:
        """Begin an answer."""
        return Answer(self._connect, prompt, options or GenerateOptions())

    def _connect(self) -> Served:
        return served(self._peers)


def connect(peer: str | None = None) -> Connection:
    """This machine's cluster; ``peer`` (``HOST:PORT``) says where its coordinator is, if it is not found."""
    return Connection(peer)


class Answer:
    """An answer as it comes: iterate over it for its text, or wait for the ``whole`` of it."""

    def __init__(
        self, source: Callable[[], AbstractContextManager[Model]], prompt: Prompt, options: GenerateOptions
    ) -> None:
        self._source = source
        self._prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        self._options = options
        self._stopped = threading.Event()

    async def whole(self) -> Completion:
        """Wait for all of it.

        Raises:
            EdgeppError: it cannot be given, or not finished.
        """
        text = [piece async for piece in self]
        asked = self._asked
        if asked.finish_reason is None:
            raise EdgeppError("the answer ended without a reason", "please report this")
        return Completion(
            "".join(text),
            tuple(asked.token_ids),
            asked.finish_reason,
            asked.prompt_tokens,
            asked.timing,
            asked.stages,
        )

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text as they come; leaving early cancels the rest.

        Raises:
            EdgeppError: it cannot be given, or not finished.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | EdgeppError | None] = asyncio.Queue()

        def put(piece: str | EdgeppError | None) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody reads on
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        reader = threading.Thread(target=self._read, args=(put,), name="reader", daemon=True)
        reader.start()
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, EdgeppError):
                    raise piece
                yield piece
        finally:
            self._stopped.set()
            await asyncio.to_thread(reader.join)

    def _read(self, put: Callable[[str | EdgeppError | None], None]) -> None:
        try:
            with self._source() as model:
                self._asked = model.ask(self._prompt, self._options)
                for piece in self._asked:
                    put(piece)
                    if self._stopped.is_set():
                        self._asked.cancel()
            put(None)
        except EdgeppError as error:
            put(error)
