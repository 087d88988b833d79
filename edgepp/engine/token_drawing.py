"""From the rows of a step that came back to the next tokens of its requests: norm and head if need be, and sampling.

``draw`` changes nothing of a request but its sampler, so it may run in another thread than the engine's, which keeps
all else: while ``DrawingThread`` is at one step, the engine thread receives and sends others.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from edgepp.backend.base import EmbeddingAndHead, RowLogits
from edgepp.backend.candidates import NOT_FINITE, CandidateRow
from edgepp.backend.device import release_thread
from edgepp.engine.engine_request import Drawn, EngineRequest
from edgepp.engine.prompt_scoring import scored_tokens
from edgepp.engine.request_isolation import GuardedEnds
from edgepp.engine.ring import ResultKind, StageInfo
from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array
from edgepp.wire.mailbox import Mailbox


@dataclass(frozen=True)
class StepResult:
    """The rows of a step that came back, and the requests that are due a token from them."""

    requests: tuple[EngineRequest, ...]
    parts: tuple[slice, ...]
    """The rows of each request from which its tokens are drawn; none of a chunk in mid-prompt."""
    rows: Array
    """(T, D), or as wide as the ``kind`` of result is."""
    kind: ResultKind
    source: StageInfo
    """The stage that gave them, for errors."""
    prompt_start: int | None = None
    """Position of the first row, where the rows are a chunk of the prompt of one request, to score its tokens."""


Drawable: TypeAlias = "Sequence[RowLogits] | Array | BaseException"
"""The logits or candidates of one request, or the error that prevented them."""

Draws = list[tuple[EngineRequest, "Drawn | BaseException"]]
"""What was drawn for each request, or the error that ends the request."""


def draw(ends: GuardedEnds, result: StepResult) -> Draws:
    """Draw the next tokens of each request of a step; errors are those of one request each."""
    if result.prompt_start is not None:
        return [(request, _scored(ends, request, result, result.prompt_start)) for request in result.requests]
    return _drawn_from(ends, result)


def _scored(ends: GuardedEnds, request: EngineRequest, result: StepResult, start: int) -> Drawn | BaseException:
    """What a chunk of a prompt gives: the scores of its tokens, and behind the last one the first of the answer."""
    try:
        scored = scored_tokens(ends, request, start, result.rows, result.source)
    except BaseException as error:  # noqa: BLE001 - the boundary of one request
        return error
    if not result.parts:
        return Drawn((), 0, None, scored=scored)
    ((_, drawn),) = _drawn_from(ends, replace(result, rows=result.rows[result.parts[0]], parts=(slice(None),)))
    return drawn if isinstance(drawn, BaseException) else replace(drawn, scored=scored)


def _drawn_from(ends: GuardedEnds, result: StepResult) -> Draws:
    began_s = time.perf_counter()
    rows: list[Drawable]
    match result.kind.form:
        case "hidden":
            rows = [*ends.logits(result.rows, result.parts, result.source)]
        case "logits":
            rows = [_logits_of(result.rows[part], result.source) for part in result.parts]
        case "candidates":
            rows = [_candidates_of(result.rows[part], ends.vocabulary, result.source) for part in result.parts]
    known_s = time.perf_counter()
    for request in result.requests:
        if request.trace is not None:
            request.trace.span("head", began_s, known_s, len(result.rows))
    return [(request, _drawn(request, one)) for request, one in zip(result.requests, rows, strict=True)]


def _logits_of(rows: Array, source: StageInfo) -> Drawable:
    """The logits (T, V) that the stage ``source`` returned for one request, or the error of that request."""
    for row in rows:
        if not np.isfinite(row.max()):  # the largest is NaN where any is
            return StageFault(f"{source} returned {NOT_FINITE}")
    return rows


def _candidates_of(rows: Array, vocabulary: int, source: StageInfo) -> Drawable:
    """The candidates that the stage ``source`` returned for one request, or the error of that request."""
    try:
        return [CandidateRow(row, vocabulary, source) for row in rows]
    except StageFault as error:
        return error


def _drawn(request: EngineRequest, rows: Drawable) -> Drawn | BaseException:
    if isinstance(rows, BaseException):
        return rows
    began_s = time.perf_counter()
    try:
        drawn = request.draw(rows)
    except BaseException as error:  # noqa: BLE001 - the boundary of one request
        return error
    if request.trace is not None:
        request.trace.span("sample", began_s, time.perf_counter(), len(drawn.tokens))
    return drawn


class DrawingThread:
    """Draws tokens in a thread of its own, step by step in the order given. Its methods belong to the engine thread."""

    def __init__(self, ends: EmbeddingAndHead) -> None:
        """Begin; ``ends`` may be called by any thread."""
        self._ends = GuardedEnds(ends)
        self._results: queue.SimpleQueue[StepResult | None] = queue.SimpleQueue()
        self.draws: Mailbox[tuple[Draws, float]] = Mailbox()
        """What was drawn, step by step, and how many seconds that took; wakes the engine thread."""
        self._thread = threading.Thread(target=self._run, name="head", daemon=True)
        self._thread.start()

    def put(self, result: StepResult) -> None:
        """Draw from ``result`` behind all earlier ones; ``take`` gives what was drawn."""
        self._results.put(result)

    def take(self) -> Iterable[tuple[Draws, float]]:
        """Tokens drawn since the last call, step by step, and the seconds that each step's drawing took."""
        return self.draws.drain()

    def close(self) -> None:
        """End the thread behind the results that were put; what is drawn from them is dropped."""
        self._results.put(None)
        self._thread.join()
        self.draws.close()

    def _run(self) -> None:
        try:
            while (result := self._results.get()) is not None:
                began_s = time.perf_counter()
                try:
                    draws = draw(self._ends, result)
                except BaseException as error:  # noqa: BLE001 - the boundary of one step: its requests end by it
                    draws = [(request, error) for request in result.requests]
                self.draws.put((draws, time.perf_counter() - began_s))
        finally:
            release_thread()
