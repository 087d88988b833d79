"""Calls for the traces that a coordinator keeps of the newest requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edgepp.errors import UsageError
from edgepp.tracing.request_trace import RequestTrace, TraceLog
from edgepp.tracing.trace_view import records_per_page, view
from edgepp.tracing.view_json import encode_view

NEWEST = "last"
"""Name of the newest request."""


def told_trace(traces: TraceLog, owner: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to a call: some records of the trace of ``request`` from number ``first`` on, or a list of all traces.

    An ``owner`` is told of its own requests alone; an empty one, the coordinator's own machine, of all.

    Raises:
        UsageError: there is no such trace, or none is kept.
    """
    request, first = arguments.get("request", ""), arguments.get("first", 0)
    if not isinstance(request, str) or type(first) is not int or first < 0:
        raise UsageError("a trace is asked for by the id of a request")
    if not traces.kept:
        raise UsageError(
            "no traces are kept: `edgepp serve` runs with --trace-requests off",
            "start it with --trace-requests last:20",
        )
    known = [trace for trace in traces if owner in ("", trace.owner)]
    if not request:
        return {"requests": [_listed(trace) for trace in known]}
    names = (trace for trace in known if request in (NEWEST, trace.id, *trace.aliases))
    trace = next(names, None)
    if trace is None:
        raise UsageError(
            f"there is no trace of a request '{request:.80}': those of the newest {traces.kept} are kept",
            "`edgepp trace` lists them",
        )
    return encode_view(view(trace, first, records_per_page(trace)))


def _listed(trace: RequestTrace) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for event in list(trace.events):
        if event.name in ("admitted", "ended"):
            facts |= event.facts
    return {
        "request": trace.id,
        "aliases": list(trace.aliases),
        "seconds_ago": round(time.perf_counter() - trace.began_s, 1),
        "prompt_tokens": facts.get("prompt_tokens", 0),
        "tokens": facts.get("tokens", 0),
        "ended": facts.get("how", ""),
    }
