"""All answers under way: admitted by the shares of their owners, counted, and shown in the status and the log."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgepp.coordinator.ended_answer import OnEnded, log_answer
from edgepp.coordinator.fair_shares import FairLimiter
from edgepp.coordinator.live_answer import PIPELINE_WAIT_S, LiveAnswer
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.request import GenerateOptions
from edgepp.engine.timing import Timing
from edgepp.errors import Overloaded
from edgepp.model.text.conversation import Prompt
from edgepp.structured_log import fields
from edgepp.tracing.request_trace import RequestTrace, TraceLog

log = logging.getLogger("edgepp.coordinator")

MAX_ANSWERS = 128
"""Answers at a time, plus one per owner (``FairLimiter``); further questions are declined."""
MAX_TOLD = 32
"""Answers under way that the status tells of one by one."""


class LiveAnswers:
    """All answers under way, for whoever asks."""

    def __init__(self, pipeline_manager: PipelineManager, traces: TraceLog | None = None) -> None:
        """``traces`` keeps the traces of the newest requests; of none by default."""
        self._pipeline_manager = pipeline_manager
        self.traces = traces or TraceLog(0)
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
        """Number of answers that the engine has; the other answers wait for a pipeline."""
        return sum(live.running for live in self._snapshot())

    @contextmanager
    def asking(
        self,
        owner: str,
        prompt: Prompt,
        options: GenerateOptions,
        wait_s: float = PIPELINE_WAIT_S,
        encoded_by: ModelFrontend | None = None,
        request_id: str = "",
        trace: RequestTrace | None = None,
    ) -> Iterator[LiveAnswer]:
        """An answer that counts as under way inside the ``with`` statement; the arguments are a ``LiveAnswer``'s.

        Without a ``request_id``, the answer gets one, and a trace if traces are kept.

        Raises:
            Overloaded: too many answers are under way.
        """
        if not request_id:
            request_id, trace = self._named(owner)
        live = self._admit(
            LiveAnswer(self._pipeline_manager, owner, prompt, options, wait_s, encoded_by, request_id, trace)
        )
        try:
            yield live
        finally:
            self.end(live)

    def begin(self, owner: str, prompt: Prompt, options: GenerateOptions) -> LiveAnswer:
        """Count one more answer for ``owner`` as under way, until ``end``.

        Raises:
            Overloaded: too many answers are under way.
        """
        request_id, trace = self._named(owner)
        return self._admit(
            LiveAnswer(self._pipeline_manager, owner, prompt, options, request_id=request_id, trace=trace)
        )

    def _named(self, owner: str) -> tuple[str, RequestTrace | None]:
        """The id of a new request, and its trace if traces are kept."""
        request_id = f"ask_{secrets.token_hex(12)}"
        return request_id, self.traces.begin(request_id, time.perf_counter(), owner)

    def _admit(self, live: LiveAnswer) -> LiveAnswer:
        log.info("a request came", extra=fields("request_came", live.request_id))
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
        """Release the place of an answer that has ended, in whatever way."""
        with self._lock:
            self._live.discard(live)
            self._limiter.release(live.owner)
        if live.finish_reason is None:
            self._count(live)

    def _count(self, live: LiveAnswer) -> None:
        if live.complete:
            with self._lock:
                self.last, self.num_finished = live.timing, self.num_finished + 1
        ended = live.ended
        for observer in self.observers:
            observer(ended)
        log_answer(live.request_id, ended)

    def running(self) -> list[dict[str, Any]]:
        """Numbers of each answer under way, oldest first, without its owner and its text."""
        return [live.to_json() for live in sorted(self._snapshot(), key=lambda live: live.asked_s)[:MAX_TOLD]]

    def cancel_all(self) -> None:
        """Stop all answers."""
        for live in self._snapshot():
            live.cancel()

    def _snapshot(self) -> list[LiveAnswer]:
        with self._lock:
            return list(self._live)
