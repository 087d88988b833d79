"""The answers under way: one object per answer, which gives its text in the thread that reads it.

A ``LiveAnswer`` waits for a pipeline, pauses while the pipeline has lost a stage, and can be cancelled from any
thread. ``LiveAnswers`` admits answers by the shares of their owners, and counts them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from edgepp.coordinator.fair_shares import FairLimiter
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.pipeline import Pipeline
from edgepp.engine.request import FinishReason, GenerateOptions
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import TextPiece, TextStream
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError, NotReady, Overloaded
from edgepp.model.text.conversation import Prompt

MAX_ANSWERS = 128
"""Answers at a time, plus one per owner (``FairLimiter``); further questions are declined."""
PIPELINE_WAIT_S = 120.0
"""How long a question waits for a pipeline."""


@dataclass(frozen=True)
class EndedAnswer:
    """Numbers of an answer that has ended, for statistics."""

    outcome: Literal["stop", "length", "cancelled", "error"]
    prompt_tokens: int
    tokens: int
    timing: Timing
    stages: tuple[StageInfo, ...]
    e2e_s: float
    """Seconds from the question to the end."""
    gaps_s: Sequence[float] = ()
    """Seconds between one piece of text and the next."""


OnEnded = Callable[[EndedAnswer], None]


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
    ) -> None:
        """Make an answer.

        Args:
            pipeline_manager: Where pipelines come from.
            owner: Who asks: a node's key, or ``python_api.serving.local_owner``.
            prompt: A raw text, a conversation, or token ids.
            options: Length, sampling and constraint.
            wait_s: How long to wait for a pipeline.
            encoded_by: What encoded a prompt of token ids, which mean something else to another model.
        """
        self._pipeline_manager = pipeline_manager
        self.owner = owner
        self._prompt = prompt
        self._options = options
        self._encoded_by = encoded_by
        self._asked_s = time.perf_counter()
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
        self.spelled: Mapping[int, str] = {}
        """The text of each token in ``sampled``, by token id; filled at the end."""
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        self.prompt_tokens = 0
        """Tokens of the prompt; 0 until a pipeline has accepted it."""
        self.timing = Timing(self._asked_s)
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

    @property
    def ended(self) -> EndedAnswer:
        """The answer as it has ended."""
        return EndedAnswer(
            self.finish_reason or "error",
            self.prompt_tokens,
            len(self.token_ids),
            self.timing,
            self.stages,
            time.perf_counter() - self._asked_s,
            self._gaps_s,
        )

    def pieces(self) -> Iterator[TextPiece]:
        """Pieces of text with their tokens as they come, an empty one first, once a pipeline has accepted the prompt.

        Raises:
            NotReady: no pipeline was open in time.
            EdgeppError: the answer cannot be finished; the text so far is right.
        """
        try:
            pipeline = self._pipeline_manager.acquire(self._until_s - time.monotonic(), lambda: self.cancelled)
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
        stream = pipeline.ask(self._prompt, self._options, self.owner)
        stream.timing.queued_s = stream.timing.submitted_s - self._asked_s
        stream.timing.submitted_s = self._asked_s
        self.token_ids, self.sampled, self.timing = stream.token_ids, stream.sampled, stream.timing
        self.prompt_tokens = stream.prompt_tokens
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


class LiveAnswers:
    """All answers under way, for whoever asks."""

    def __init__(self, pipeline_manager: PipelineManager) -> None:
        self._pipeline_manager = pipeline_manager
        self._lock = threading.Lock()
        self._live: set[LiveAnswer] = set()
        self._limiter = FairLimiter(MAX_ANSWERS)
        self.num_finished = 0
        self.last: Timing | None = None
        """The timing of the newest finished answer."""
        self.observers: list[OnEnded] = []
        """Called with each answer that has ended, in the thread that read it."""

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_running(self) -> int:
        """Answers that the engine has; the others wait for a pipeline."""
        return sum(live.running for live in self._snapshot())

    @contextmanager
    def asking(
        self,
        owner: str,
        prompt: Prompt,
        options: GenerateOptions,
        wait_s: float = PIPELINE_WAIT_S,
        encoded_by: ModelFrontend | None = None,
    ) -> Iterator[LiveAnswer]:
        """An answer that counts as under way inside the ``with`` statement; the arguments are a ``LiveAnswer``'s.

        Raises:
            Overloaded: too many answers are under way.
        """
        live = self._admit(LiveAnswer(self._pipeline_manager, owner, prompt, options, wait_s, encoded_by))
        try:
            yield live
        finally:
            self.end(live)

    def begin(self, owner: str, prompt: Prompt, options: GenerateOptions) -> LiveAnswer:
        """Count one more answer for ``owner`` as under way, until ``end``.

        Raises:
            Overloaded: too many answers are under way.
        """
        return self._admit(LiveAnswer(self._pipeline_manager, owner, prompt, options))

    def _admit(self, live: LiveAnswer) -> LiveAnswer:
        with self._lock:
            if not self._limiter.acquire(live.owner):
                raise Overloaded(
                    f"{len(self._live)} answers are under way already, and the asker's share of them is taken",
                    "ask again when one of them has ended",
                )
            self._live.add(live)
        live.on_complete = lambda: self._count(live)
        return live

    def end(self, live: LiveAnswer) -> None:
        """Give the answer's place to others: it has ended, in whatever way."""
        with self._lock:
            self._live.discard(live)
            self._limiter.release(live.owner)
        if live.finish_reason is None:
            self._count(live)

    def _count(self, live: LiveAnswer) -> None:
        if live.complete:
            with self._lock:
                self.last, self.num_finished = live.timing, self.num_finished + 1
        for observer in self.observers:
            observer(live.ended)

    def cancel_all(self) -> None:
        """Stop all answers."""
        for live in self._snapshot():
            live.cancel()

    def _snapshot(self) -> list[LiveAnswer]:
        with self._lock:
            return list(self._live)
