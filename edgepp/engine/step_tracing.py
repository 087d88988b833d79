"""Recording of what the engine thread does for requests: in their traces, and what happens to them in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from edgepp.engine.drafts import LayeredDraft
from edgepp.engine.engine_request import EngineRequest
from edgepp.structured_log import fields
from edgepp.tracing.request_trace import StepKind, StepTrace

log = logging.getLogger("edgepp.engine")


def begin_step(requests: Sequence[EngineRequest], kind: StepKind, position: int, rows: int) -> StepTrace | None:
    """The record of a step whose embedding begins now; None where none of its ``requests`` is traced."""
    traces = [request.trace for request in requests if request.trace is not None]
    if not traces:
        return None
    step = StepTrace(kind, position, rows, time.perf_counter())
    for trace in traces:
        trace.step(step)
    return step


def embedded(step: StepTrace | None) -> None:
    """Note that the rows of a step are embedded."""
    if step is not None:
        step.embedded_s = time.perf_counter()


def settle_guesses(request: EngineRequest, guesses: Sequence[int]) -> None:
    """Note whether the first of ``guesses``, which were in the ring, is the token that was drawn last."""
    if request.trace is not None and guesses:
        request.trace.settle_guesses(len(request.ids) - 1, right=guesses[0] == request.ids[-1])


def admitted(request: EngineRequest) -> None:
    """Note that a request begins, or goes on after it gave way to others."""
    now_s = time.perf_counter()
    if request.trace is not None and request.queued_s:
        request.trace.span("queue", request.queued_s, now_s)
    request.queued_s = 0.0
    _note(
        request,
        "admitted",
        now_s,
        sequence=request.sequence,
        prompt_tokens=request.prompt_tokens,
        reused_tokens=request.timing.reused,
        tokens=request.tokens,
    )


def follow_draft(request: EngineRequest) -> None:
    """Note in the trace the seconds from asking another process for guesses until they come; lookup takes no time."""
    if request.trace is not None and isinstance(request.draft, LayeredDraft):
        request.draft.record_in(request.trace)


def recovered(request: EngineRequest, began_s: float, how: str, prefilled: int) -> None:
    """Note that a request goes on over other stages, after a pause since ``began_s``."""
    now_s = time.perf_counter()
    if request.trace is not None:
        request.trace.span("recovery", began_s, now_s, prefilled)
    _note(request, "recovered", now_s, how=how, prefilled=prefilled, losses=request.recoveries)


def ended(request: EngineRequest, how: str) -> None:
    """Note that a request has ended."""
    _note(request, "ended", time.perf_counter(), how=how, tokens=request.tokens)


def _note(request: EngineRequest, what: str, now_s: float, **facts: str | int) -> None:
    if request.trace is not None:
        request.trace.event(what, now_s, request=request.id, **facts)
    if log.isEnabledFor(logging.INFO):
        log.info("request %d: %s", request.id, what, extra=fields(f"request_{what}", request.request_id, **facts))
