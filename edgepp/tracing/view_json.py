"""A trace as JSON, between the coordinator and whoever asks for the trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepp.errors import RemoteProtocolError
from edgepp.printable import one_line
from edgepp.tracing.trace_view import TraceView, ViewEvent, ViewProcess, ViewSpan

_MAX_NAME = 200
_MAX_US = 1 << 53


def encode_view(trace: TraceView) -> dict[str, Any]:
    """The JSON object of a trace, or of a part of it."""
    return {
        "request": trace.request,
        "aliases": trace.aliases,
        "num_dropped": trace.num_dropped,
        "processes": [[one.name, one.node, one.pid, one.clock_error_us, one.drift_ppm] for one in trace.processes],
        "spans": trace.spans,
        "events": trace.events,
        "next": trace.next,
    }


def decode_view(fields: Mapping[str, Any]) -> TraceView:
    """The trace, or part of it, that ``encode_view`` encoded.

    Raises:
        RemoteProtocolError: the object is malformed.
    """
    try:
        processes = [
            ViewProcess(_name(name), _name(node), _number(pid), _number(error_us), float(drift))
            for name, node, pid, error_us, drift in fields["processes"]
        ]
        spans = [_span(values, len(processes)) for values in fields["spans"]]
        events = [ViewEvent(_name(name), _number(at_us), _facts(facts)) for name, at_us, facts in fields["events"]]
        following = fields["next"]
        return TraceView(
            _name(fields["request"]),
            [_name(one) for one in fields["aliases"]],
            _number(fields["num_dropped"]),
            processes,
            spans,
            events,
            None if following is None else _number(following),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RemoteProtocolError(f"a trace is malformed: {error}") from error


def _span(values: Any, num_processes: int) -> ViewSpan:
    process, track, name, begin_us, took_us, step, amount = values
    found = ViewSpan(
        _number(process), _name(track), _name(name), _number(begin_us), _number(took_us), _number(step), _number(amount)
    )
    if not 0 <= found.process < num_processes or found.took_us < 0:
        raise ValueError("a span of no process, or of no length")
    return found


def _facts(value: Any) -> dict[str, Any]:
    facts = {_name(name): one for name, one in value.items()}
    return {name: _name(one) if isinstance(one, str) else _number(one) for name, one in facts.items()}


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text where text is expected")
    return one_line(value, _MAX_NAME)


def _number(value: Any) -> int:
    if type(value) is not int or abs(value) > _MAX_US:
        raise TypeError("no whole number where one is expected")
    return value
