"""A model that runs for this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from edgepp.api.answer import Answer, Begun
from edgepp.api.cancellable_thread import apart
from edgepp.api.question import Prompt, choice_options, conversation_or_raw
from edgepp.engine.frontend import OnProgress
from edgepp.engine.pipeline import Pipeline, PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.ring import StageInfo
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError
from edgepp.wire.messages import LinkCodec
from edgepp.wire.transport import Address


class Engine:
    """A model on this machine, or over stages that run already. Use it in an ``async with`` statement."""

    def __init__(
        self,
        model: str,
        *,
        stages: int | None = None,
        peers: Sequence[str] = (),
        backend: str = "auto",
        threads: int | None = None,
        exact: bool = False,
        codecs: Sequence[LinkCodec] = ("auto",),
        context: int | None = None,
        budget: int | None = None,
        speculate: str = "lookup",
        kv_bits: int | None = None,
    ) -> None:
        """Say what is to run; ``open`` runs it.

        Args:
            model: A name such as ``smollm2-135m``, a repository of the hub, or a folder.
            stages: Stage processes to split it over; None computes in this process.
            peers: Stages that run already, as ``HOST:PORT`` of each `edgepp join -m M --layers A-B`.
            backend: ``auto``, ``mlx`` or ``onnx``.
            threads: Compute threads a stage; None shares the cores out.
            exact: Float32 arithmetic, so that tokens do not depend on the split; slower.
            codecs: What compresses the links: one for all, or one for each; ``auto`` where that saves time.
            context: The most positions of a conversation, where that is less than the model allows.
            budget: The most positions of all answers together; others wait. None leaves it to the stages' memory.
            speculate: What guesses tokens ahead: ``lookup`` in the text so far, a small model's name, or ``off``.

            kv_bits: Bits of a key or value in the KV caches on this machine, 8 or 4; None for the backend's own floats.

        Raises:
            UsageError: the options contradict each other.
        """
        self._options = PipelineOptions(
            model,
            endpoints=tuple(Endpoint((Address.parse(peer),)) for peer in peers),
            stages=stages,
            backend=backend,
            threads=threads,
            exact=exact,
            codecs=tuple(codecs),
            context=context,
            budget=budget,
            speculate=speculate,
            kv_bits=kv_bits,
        )
        self._opening = asyncio.Lock()
        self._pipeline: Pipeline | None = None
        self._gone: EdgeppError | None = None
        """Why the last pipeline was lost, until there is another."""

    @property
    def model(self) -> str:
        """The model's name, as it was asked for."""
        return self._options.model

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """What runs where; a stage in a process of its own has a ``pid``."""
        return self._running.stages

    @property
    def sampling(self) -> SamplingOptions:
        """How the model's makers want tokens drawn, as `edgepp chat` does; an answer here is greedy unless asked."""
        return self._running.sampling

    @property
    def context(self) -> int:
        """The most positions that a conversation may take."""
        return self._running.context

    @property
    def lost(self) -> EdgeppError | None:
        """Why it does not answer: it was never opened, or was lost since; None while it does."""
        return self._gone or _not_open() if self._pipeline is None else self._pipeline.lost

    async def open(self, on_progress: OnProgress | None = None) -> None:
        """Fetch and load the model; anew, if it was lost. ``on_progress`` is called from another thread.

        Raises:
            EdgeppError: one sentence about what keeps it from running.
        """
        async with self._opening:
            if self.lost is not None:
                gone = self._gone if self._pipeline is None else self._pipeline.lost
                await self.close()
                self._gone = gone
                self._pipeline = await _open(self._options, on_progress)
                self._gone = None

    async def close(self) -> None:
        """End what is under way and stop the stages that were started here."""
        pipeline, self._pipeline, self._gone = self._pipeline, None, None
        if pipeline is not None:
            await asyncio.to_thread(pipeline.close)

    async def __aenter__(self) -> Engine:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def ask(
        self, prompt: Prompt, options: GenerateOptions | None = None, *, raw: bool = False, owner: str = ""
    ) -> Answer:
        """An answer, which begins when it is read; once more, on an engine opened anew, if a stage was lost before.

        A ``raw`` text goes to the model as it stands. What the same ``owner`` asked before need not be computed again;
        nobody else can tell that it was asked.

        Raises:
            UsageError: a conversation is to be raw.
        """
        asked = conversation_or_raw(prompt, raw=raw)

        def begin() -> AbstractContextManager[Begun]:
            answer = self._running.ask(asked, options or GenerateOptions(), owner)
            return nullcontext(Begun(answer, answer.cancel))

        return Answer(begin, self.open)

    def choices(
        self, prompt: Prompt, n: int, options: GenerateOptions | None = None, *, raw: bool = False, owner: str = ""
    ) -> list[Answer]:
        """``n`` answers to one prompt, which is computed once when they are read together.

        With a seed, the first is drawn by it and each further one by the next number.

        Raises:
            UsageError: ``n`` is out of bounds, or a conversation is to be raw.
        """
        return [self.ask(prompt, one, raw=raw, owner=owner) for one in choice_options(n, options)]

    @property
    def _running(self) -> Pipeline:
        if self._pipeline is None:
            raise self._gone or _not_open()
        return self._pipeline


def _not_open() -> EdgeppError:
    return EdgeppError("the engine is not open", "use it in an `async with` statement")


async def _open(options: PipelineOptions, on_progress: OnProgress | None) -> Pipeline:
    def work(given_up: threading.Event) -> Pipeline:
        def tell(done: int, total: int, what: str) -> None:
            if given_up.is_set():
                raise EdgeppError("the engine was given up while it loaded")
            if on_progress is not None:
                on_progress(done, total, what)

        return Pipeline(options, tell)

    return await apart(work, Pipeline.close)
