"""One answer under way, which gives its text in the thread that reads it.

It waits for a pipeline, pauses while the pipeline has lost a stage, and can be cancelled from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgepp.coordinator.ended_answer import EndedAnswer
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.request import FinishReason, GenerateOptions
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import TextPiece, TextStream
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError, NotReady
from edgepp.model.text.conversation import Prompt
from edgepp.tracing.request_trace import RequestTrace

PIPELINE_WAIT_S = 120.0
"""How long a question waits for a pipeline."""


class LiveAnswer:
    """One answer: iterate over its ``pieces`` once; then ``finish_reason`` and the rest are known."""

    def __init__(
        self,
        pipeline_manager: PipelineManager,
        owner: str,
        prompt: Prompt,
        options: GenerateOptions,
        wait_s: float = PIPELINE_WAIT_S,
        encoded_by: ModelFrontend | None = None,
        request_id: str = "",
        trace: RequestTrace | None = None,
    ) -> None:
        """Make an answer.

        Args:
            pipeline_manager: Where pipelines come from.
            owner: Who asks: a node's key, or ``python_api.served_cluster.local_owner``.
            prompt: A raw text, a conversation, or token ids.
            options: Length, sampling and constraint.
            wait_s: How long to wait for a pipeline.
            encoded_by: What encoded a prompt of token ids, which mean something else to another model.
            request_id: The name of the request in logs.
            trace: Where what is done for it is recorded.
        """
        self._pipeline_manager = pipeline_manager
        self.owner = owner
        self._prompt = prompt
        self._options = options
        self._encoded_by = encoded_by
        self.request_id = request_id
        self.trace = trace
        self.asked_s = time.perf_counter()
        """When the question came, by ``time.perf_counter``."""
        self._until_s = time.monotonic() + wait_s
        self._lock = threading.Lock()
        self._stream: TextStream | None = None
        self._gave_text = False
        self._heard_s = 0.0
        """When the last text came, by ``time.perf_counter``."""
        self.cancelled = False
        self.token_ids: list[int] = []
        self.sampled: list[Sampled] = []
        """One per token, if log-probabilities were requested."""
        self.prompt_sampled: list[Sampled] = []
        """One per token of the prompt but the first, if requested; complete when the first token comes."""
        self.spelled: Mapping[int, str] = {}
        """The text of each token in ``sampled``, by token id; filled at the end."""
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        self.prompt_tokens = 0
        """Tokens of the prompt; 0 until a pipeline has accepted it."""
        self.timing = Timing(self.asked_s)
        self.on_complete: Callable[[], None] = lambda: None
        """Called when the pieces are over, before the reader learns how they ended."""
        self._gaps_s: list[float] = []

    @property
    def complete(self) -> bool:
        """Whether the engine itself has ended the answer."""
        return self._stream is not None and self._stream.finish_reason is not None

    @property
    def running(self) -> bool:
        """Whether the engine has the answer, and has not ended it."""
        return self._stream is not None and self._stream.finish_reason is None

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """The stages that compute the answer, or gave its last token; none before a pipeline has accepted it."""
        return self._stream.stages if self._stream is not None else ()

    def to_json(self) -> dict[str, Any]:
        """State and numbers of the answer: ``waiting`` for a pipeline, then ``reading`` until its first token."""
        timing = self.timing
        state = "writing" if timing.tokens else "reading" if self._stream is not None else "waiting"
        return {
            "state": state,
            "prompt_tokens": self.prompt_tokens,
            "tokens": timing.tokens,
            "tokens_per_s": round(timing.decode_tokens_per_s, 2),
        }

    @property
    def ended(self) -> EndedAnswer:
        """The answer as it has ended."""
        return EndedAnswer(
            self.finish_reason or "error",
            self.prompt_tokens,
            len(self.token_ids),
            self.timing,
            self.stages,
            time.perf_counter() - self.asked_s,
            self._gaps_s,
        )

    def pieces(self) -> Iterator[TextPiece]:
        """Pieces of text with their tokens as they come, an empty one first, once a pipeline has accepted the prompt.

        Raises:
            NotReady: no pipeline was open in time.
            EdgeppError: the answer cannot be finished; the text so far is right.
        """
        try:
            began_s = time.perf_counter()
            pipeline = self._pipeline_manager.acquire(self._until_s - time.monotonic(), lambda: self.cancelled)
            if self.trace is not None:
                self.trace.span("wait for pipeline", began_s, time.perf_counter())
        except EdgeppError:
            if not self.cancelled:
                raise
            self.finish_reason = "cancelled"
            self.on_complete()
            return
        yield from self._read(pipeline)

    def cancel(self) -> None:
        """Stop the answer, also one that has not begun. Safe from any thread."""
        with self._lock:
            self.cancelled = True
            if self._stream is not None:
                self._stream.cancel()
        self._pipeline_manager.wake()

    def _read(self, pipeline: Pipeline) -> Iterator[TextPiece]:
        if self._encoded_by is not None and pipeline.frontend is not self._encoded_by:
            raise NotReady("the cluster has changed its model", "ask again")
        stream = pipeline.ask(self._prompt, self._options, self.owner, self.request_id, self.trace)
        stream.timing.queued_s = stream.timing.submitted_s - self.asked_s
        stream.timing.submitted_s = self.asked_s
        self.token_ids, self.sampled, self.timing = stream.token_ids, stream.sampled, stream.timing
        self.prompt_tokens, self.prompt_sampled = stream.prompt_tokens, stream.prompt_sampled
        self._bind(stream)
        yield TextPiece("")
        for piece in stream.pieces():
            if piece.text:
                self._note_text()
            yield piece
            if self.cancelled:
                break  # the tokens beyond are not needed
        self.spelled, self.stop_string = stream.spelled, stream.stop_string
        self.finish_reason = stream.finish_reason or "cancelled"
        self.on_complete()

    def _bind(self, stream: TextStream) -> None:
        """Let ``cancel`` stop this stream."""
        with self._lock:
            self._stream = stream
            if self.cancelled:
                stream.cancel()

    def _note_text(self) -> None:
        now_s = time.perf_counter()
        if self._gave_text:
            self._gaps_s.append(now_s - self._heard_s)
        self._gave_text, self._heard_s = True, now_s
