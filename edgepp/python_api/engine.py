"""A model that runs for this program."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from edgepp.engine.frontend import OnProgress
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.ring import StageInfo
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError, UsageError, check_whole
from edgepp.model.tensor_shares import check_weights
from edgepp.python_api.answer import Answer, Begun
from edgepp.python_api.async_resource import AsyncResource
from edgepp.python_api.cancellable_thread import run_in_thread
from edgepp.python_api.question import Question, choice_options, conversation_or_raw
from edgepp.tracing.request_trace import TraceLog
from edgepp.tracing.trace_view import TraceView, view
from edgepp.wire.address import Address
from edgepp.wire.field_types import LinkCodec


class Engine(AsyncResource):
    """A model on this machine, or on stages that already run elsewhere. Use it in an ``async with`` statement."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        stages: int | None = None,
        tensor: int | Sequence[int] = 1,
        peers: Sequence[str] = (),
        backend: str = "auto",
        threads: int | None = None,
        exact: bool = False,
        codecs: Sequence[LinkCodec] = ("auto",),
        context: int | None = None,
        budget: int | None = None,
        speculate: str = "lookup",
        speculate_together: bool = False,
        kv_bits: int | None = None,
        traces: int = 0,
    ) -> None:
        """Choose a model and how it runs; ``open`` loads it.

        Args:
            model: A name such as ``smollm2-135m``, a Hugging Face repository, or a folder.
            stages: Number of stage processes that share the layers; None computes in this process.
            tensor: Number of processes that compute each layer of a stage together, or their shares, such as (5, 3).
            peers: ``HOST:PORT`` of stages that already run, each by `edgepp join -m M --layers A-B`.
            backend: ``auto``, ``mlx`` or ``onnx``.
            threads: Compute threads per process of a stage; None divides the cores among the processes.
            exact: Float32 arithmetic, so that tokens do not depend on the split; slower.
            codecs: Compression of the links, one for all or one per link; ``auto`` compresses where that saves time.
            context: Maximum tokens of a conversation, if fewer than the model allows.
            budget: Maximum KV positions of all requests together; others wait. None: as many as the stages can hold.
            speculate: How tokens are guessed: ``lookup`` (from the owner's texts so far), the name of a small model
                that guesses too, or ``off``.
            speculate_together: Let one step carry several guesses: faster in one process; answers may then differ from
                those without guesses where two tokens are nearly equally likely.
            kv_bits: Bits per key and value in the KV caches on this machine, 8 or 4; None for unquantized floats.
            traces: Requests whose traces are kept, the newest ones.

        Raises:
            UsageError: the options contradict each other.
        """
        self._options = PipelineOptions(
            os.fspath(model),
            endpoints=tuple(Endpoint((Address.parse(peer),)) for peer in peers),
            stages=stages,
            tensor=check_weights((1,) * tensor if isinstance(tensor, int) else tensor),
            backend=backend,
            threads=threads,
            exact=exact,
            codecs=tuple(codecs),
            context=context,
            budget=budget,
            speculate=speculate,
            speculate_together=speculate_together,
            kv_bits=kv_bits,
        )
        check_whole("traces", traces, 0)
        self._traces = TraceLog(traces)
        self._opening = asyncio.Lock()
        self._pipeline: Pipeline | None = None
        self._loss: EdgeppError | None = None
        """Why the last pipeline was lost, until another is open."""

    @property
    def model(self) -> str:
        """The name of the model, as given."""
        return self._options.model

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """The stages: layers, node, address and backend; a stage in a process of its own has a ``pid``."""
        return self._running.stages

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options that the model recommends; `edgepp chat` uses them, ``ask`` is greedy by default."""
        return self._running.sampling

    @property
    def context(self) -> int:
        """Maximum tokens of a conversation."""
        return self._running.context

    @property
    def lost(self) -> EdgeppError | None:
        """The error that answers raise now: the engine is not open, or a stage was lost; None while it can answer."""
        return self._loss or _not_open() if self._pipeline is None else self._pipeline.lost

    async def open(self, on_progress: OnProgress | None = None) -> None:
        """Download and load the model, unless it is loaded; again, after a stage was lost.

        ``on_progress(done_bytes, total_bytes, what)`` is called in another thread.

        Raises:
            EdgeppError: the model cannot be downloaded, loaded or split.
        """
        async with self._opening:
            if self.lost is not None:
                loss = self._loss if self._pipeline is None else self._pipeline.lost
                await self.close()
                self._loss = loss
                self._pipeline = await _open(self._options, on_progress)
                self._loss = None

    async def close(self) -> None:
        """End all answers, and stop the stages that this engine started."""
        pipeline, self._pipeline, self._loss = self._pipeline, None, None
        if pipeline is not None:
            await asyncio.to_thread(pipeline.close)

    def ask(
        self, prompt: Question, options: GenerateOptions | None = None, *, raw: bool = False, owner: str = ""
    ) -> Answer:
        """An answer to ``prompt``, which begins when it is read.

        If a stage is lost before the first text, the engine is opened again and the answer begins once more.

        Args:
            prompt: A question; a conversation, or its messages; or token ids.
            options: Length, sampling and constraint; greedy and unconstrained by default.
            raw: Send a text unchanged, without the chat template of the model.
            owner: Name of the asker. KV caches of earlier prompts are reused for the same owner only, so that response
                times tell nobody what others asked.

        Raises:
            UsageError: ``raw`` with a conversation.
        """
        sent = conversation_or_raw(prompt, raw=raw)

        def begin() -> AbstractContextManager[Begun]:
            request_id = f"ask_{secrets.token_hex(12)}"
            trace = self._traces.begin(request_id, time.perf_counter(), owner)
            answer = self._running.ask(sent, options or GenerateOptions(), owner, request_id, trace)
            return nullcontext(Begun(answer, answer.cancel, request_id=lambda: request_id))

        return Answer(begin, self.open)

    def choices(
        self, prompt: Question, n: int, options: GenerateOptions | None = None, *, raw: bool = False, owner: str = ""
    ) -> list[Answer]:
        """``n`` answers to one prompt; the prompt is computed once if the answers are read together.

        With a seed, the first answer uses it, and each further one the next number.

        Raises:
            UsageError: ``n`` is not from 1 to 16, or ``raw`` with a conversation.
        """
        return [self.ask(prompt, one, raw=raw, owner=owner) for one in choice_options(n, options)]

    async def trace(self, request_id: str) -> TraceView:
        """The trace of a recent request, such as ``answer.request_id``: times in this process and on stages.

        Raises:
            UsageError: no such trace is kept.
        """
        trace = self._traces.find(request_id)
        if trace is None:
            raise UsageError(f"no trace of request '{request_id:.80}' is kept", "make the engine with traces=20")
        return view(trace)

    @property
    def _running(self) -> Pipeline:
        if self._pipeline is None:
            raise self._loss or _not_open()
        return self._pipeline


def _not_open() -> EdgeppError:
    return EdgeppError("the engine is not open", "use it in an `async with` statement")


async def _open(options: PipelineOptions, on_progress: OnProgress | None) -> Pipeline:
    def work(given_up: threading.Event) -> Pipeline:
        def progress(done: int, total: int, what: str) -> None:
            if given_up.is_set():
                raise EdgeppError("opening the engine was cancelled")
            if on_progress is not None:
                on_progress(done, total, what)

        return Pipeline(options, progress)

    return await run_in_thread(work, Pipeline.close)
