"""From a model's name to a running engine: in this process alone, over local stage processes, or over peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType

from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.frontend import ModelFrontend, OnProgress
from edgepp.engine.loop import EngineLoop
from edgepp.engine.pipeline_opening import PipelineOpening
from edgepp.engine.pipeline_options import PipelineOptions
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.engine.ring import Ring, StageInfo
from edgepp.engine.stage_handshake import Endpoint
from edgepp.engine.text_stream import TextStream
from edgepp.errors import EdgeppError
from edgepp.model.text.conversation import Prompt
from edgepp.tracing.request_trace import RequestTrace


class Pipeline:
    """A model that is ready to answer. Close it, or use it in a ``with`` statement: it may own processes."""

    def __init__(
        self,
        options: PipelineOptions,
        on_progress: OnProgress | None = None,
        frontend: ModelFrontend | None = None,
        *,
        recovers: bool = False,
    ) -> None:
        """Fetch the model unless ``frontend`` is given, start or join the stages, load embedding and head.

        A pipeline that ``recovers`` keeps its requests when it loses a stage, and waits for ``take_ring``.

        Raises:
            EdgeppError: the model cannot run, in one sentence; all that was started has been stopped.
        """
        self.options = options
        self._owned = ExitStack()
        frontend = frontend or ModelFrontend.open(options.model, whole=not options.endpoints, on_progress=on_progress)
        self._frontend, self.tokenizer = frontend, frontend.tokenizer
        self._opening = PipelineOpening(options, frontend, self._owned, on_progress)
        self._owned.callback(self.tokenizer.close)
        try:
            self.tokenizer.start()
            endpoints = options.endpoints or self._opening.start_stages()
            self.drafts = self._opening.open_drafts()
            """What guesses for the requests; None for nothing."""
            open_parts = partial(self._open_parts, endpoints)
            self.engine = self._owned.enter_context(
                EngineLoop(open_parts, self.tokenizer.eos_ids, options.budget, frontend.compile, recovers=recovers)
            )
        except BaseException:
            self._owned.close()
            raise

    @property
    def model(self) -> str:
        """The model's name, as given in the options."""
        return self.options.model

    @property
    def frontend(self) -> ModelFrontend:
        """The model's files and tokenizer, which outlive the pipeline."""
        return self._frontend

    @property
    def lost(self) -> EdgeppError | None:
        """The error that ended the engine; None while it runs, or waits for another ring."""
        return self.engine.lost

    @property
    def suspended(self) -> EdgeppError | None:
        """Why requests pause until the pipeline has another ring; None while requests are computed."""
        return self.engine.suspended

    @property
    def context(self) -> int:
        """Positions that a conversation may take at most."""
        limits = (self.engine.context, self.options.context, self.options.budget)
        return min(limit for limit in limits if limit is not None)

    @property
    def sampling(self) -> SamplingOptions:
        """The sampling options that the model's makers recommend; an answer uses them only if its options say so."""
        return self._frontend.sampling

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """The pipeline's stages in order."""
        return self.engine.stages

    def suspend(self, reason: EdgeppError, *, lost: bool) -> Future[None]:
        """Pause all requests: at once if stages are ``lost``, else once no step is under way. Safe from any thread.

        The result is set when they pause.
        """
        return self.engine.suspend(reason, lost=lost)

    def open_ring(self, endpoints: tuple[Endpoint, ...], given_up: Callable[[], bool]) -> Ring:
        """Join the stages at ``endpoints``, for ``take_ring``, unless ``given_up()`` is true before they have answered.

        Raises:
            EdgeppError: the stages cannot be joined, or do not make up the model.
        """
        return self._opening.join(endpoints, self.engine.ring_identity, given_up)

    def take_ring(self, ring: Ring) -> None:
        """Continue all requests over a ``ring`` of ``open_ring``; returns once the engine has taken the ring.

        Raises:
            EdgeppError: the pipeline was closed; ``ring`` is closed too.
        """
        self.engine.resume(ring).result()

    def ask(
        self,
        prompt: Prompt,
        options: GenerateOptions,
        owner: str = "",
        request_id: str = "",
        trace: RequestTrace | None = None,
    ) -> TextStream:
        """Answer a raw text, a conversation by the model's chat template, or token ids.

        The answer has at most as many tokens as the context has room for. Prefixes are shared between requests of one
        ``owner``. When this returns, the prompt is accepted, and ``prompt_tokens`` known. ``request_id`` is the name
        of the request in logs; what is done for it is recorded in ``trace`` if there is one.

        Raises:
            ContextExceeded: the prompt leaves no room for an answer.
            PromptRefused: the chat template does not take the conversation.
            UsageError: the prompt is empty, malformed or not Unicode text, or the constraint is invalid.
        """
        began_s = time.perf_counter()
        encoded = self.tokenizer.encode_prompt(prompt, self.context, owner)
        if trace is not None and not isinstance(prompt, tuple):
            trace.span("tokenise", began_s, time.perf_counter(), len(encoded.ids))
        room = self.context - len(encoded.ids)
        if room < options.max_tokens:
            options = replace(options, max_tokens=room)
        request = self.engine.submit(encoded.ids, options, owner, request_id, trace)
        return TextStream(self.engine, request, self.tokenizer.detokenizer(), self.tokenizer.bytes_of)

    def close(self) -> None:
        """End all requests, leave the ring, and stop the stages that this object started."""
        self._owned.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_parts(self, endpoints: tuple[Endpoint, ...]) -> EngineParts:
        return self._opening.open_parts(endpoints, self.drafts)
