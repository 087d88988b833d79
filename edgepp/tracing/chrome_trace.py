"""A trace in the JSON format of Chrome's trace viewer, which Perfetto (ui.perfetto.dev) and others open.

The format is public: "Trace Event Format". Each stage and the coordinator is a process, their parts are threads; what
waits or travels is an asynchronous event; arrows follow each token on its trip; counters show tokens and steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from edgepp.tracing.trace_view import TRIP_TRACKS, TraceView, ViewSpan

_TRACKS = ("request", "http", "text", "engine", "head", "compute", "rank", "way", "queue", "draft")
Event = dict[str, Any]


def chrome_trace(trace: TraceView) -> dict[str, Any]:
    """The JSON object of a trace; times are microseconds since the request came."""
    lanes = _Lanes()
    events = [
        event
        for span in sorted(trace.spans, key=lambda one: (one.begin_us, -one.took_us))
        for event in _of_span(span, lanes)
    ]
    events += _arrows(lanes)
    events += _counters(trace)
    events += [
        {"name": one.name, "cat": "event", "ph": "i", "s": "p", "ts": one.at_us, "pid": 0, "tid": 0, "args": one.facts}
        for one in trace.events
    ]
    return {
        "displayTimeUnit": "ms",
        "metadata": {
            "request": trace.request,
            "names": trace.aliases,
            "clock": "the coordinator's monotonic clock, from the arrival of the request",
            "clock_error_us": {one.name: one.clock_error_us for one in trace.processes},
            "clock_drift_ppm": {one.name: one.drift_ppm for one in trace.processes},
            "records_dropped": trace.num_dropped,
        },
        "traceEvents": [*_names(trace, lanes), *events],
    }


def chrome_traces(traces: Sequence[tuple[TraceView, int]]) -> dict[str, Any]:
    """The JSON object of several traces, each with the microseconds by which its request came after the first one."""
    events: list[Event] = []
    found = [chrome_trace(trace) for trace, _ in traces]
    first_process = 0
    for number, ((trace, later_us), one) in enumerate(zip(traces, found, strict=True)):
        for event in one["traceEvents"]:
            moved = event | {"pid": event["pid"] + first_process}
            if "ts" in event:
                moved["ts"] += later_us
            if "id" in event:
                moved["id"] = f"{number}-{event['id']}"
            if event["name"] == "process_name":
                moved["args"] = {"name": f"{event['args']['name']}: {trace.request}"}
            elif event["name"] == "process_sort_index":
                moved["args"] = {"sort_index": moved["pid"]}
            events.append(moved)
        first_process += len(trace.processes)
    return {
        "displayTimeUnit": "ms",
        "metadata": {"requests": [one["metadata"] for one in found]},
        "traceEvents": events,
    }


class _Lanes:
    """Thread ids: spans of one thread must not overlap, so a span that would gets a further lane of its track."""

    def __init__(self) -> None:
        self._free_us: dict[tuple[int, str], list[int]] = defaultdict(list)
        """When each lane of a track is free again."""
        self.of: dict[ViewSpan, int] = {}

    def place(self, span: ViewSpan) -> int:
        """The thread id of a span; spans come in the order of their beginning."""
        ends = self._free_us[span.process, span.track]
        lane = next((i for i, end_us in enumerate(ends) if end_us <= span.begin_us), len(ends))
        if lane == len(ends):
            ends.append(0)
        ends[lane] = span.begin_us + span.took_us
        self.of[span] = thread = _thread(span.track, lane)
        return thread

    def names(self) -> Iterator[tuple[int, int, str]]:
        """Process, thread id and name of each lane."""
        for (process, track), ends in self._free_us.items():
            for lane in range(len(ends)):
                yield process, _thread(track, lane), track if not lane else f"{track} {lane + 1}"


def _thread(track: str, lane: int) -> int:
    return 1 + _TRACKS.index(track) + len(_TRACKS) * lane


def _of_span(span: ViewSpan, lanes: _Lanes) -> Iterator[Event]:
    args = {name: value for name, value in (("step", span.step), ("count", span.amount)) if value > 0 or name == "step"}
    if span.track in TRIP_TRACKS:
        number = f"{span.track}-{span.process}-{span.step}-{span.begin_us}"
        common = {"name": span.name, "cat": span.track, "id": number, "pid": span.process, "tid": 0}
        yield common | {"ph": "b", "ts": span.begin_us, "args": args}
        yield common | {"ph": "e", "ts": span.begin_us + span.took_us, "args": {}}
    else:
        yield {
            "name": span.name,
            "cat": span.track,
            "ph": "X",
            "ts": span.begin_us,
            "dur": span.took_us,
            "pid": span.process,
            "tid": lanes.place(span),
            "args": args,
        }


def _arrows(lanes: _Lanes) -> Iterator[Event]:
    """An arrow along each trip: from the coordinator's encoding through each stage's computing to the receipt."""
    stops: dict[int, list[ViewSpan]] = defaultdict(list)
    for span in lanes.of:
        is_stop = span.name.startswith("compute") if span.process else span.name in ("encode", "receive")
        if span.step >= 0 and is_stop:
            stops[span.step].append(span)
    for step, spans in stops.items():
        if len(spans) < 2:
            continue
        spans.sort(key=lambda one: one.begin_us)
        for index, span in enumerate(spans):
            phase = "s" if not index else "f" if index == len(spans) - 1 else "t"
            arrow = {
                "name": "trip",
                "cat": "trip",
                "ph": phase,
                "id": step,
                "ts": span.begin_us,
                "pid": span.process,
                "tid": lanes.of[span],
            }
            yield arrow | ({"bp": "e"} if phase == "f" else {})


def _counters(trace: TraceView) -> Iterator[Event]:
    """Tokens so far, and steps under way."""
    tokens = 0
    for span in sorted((one for one in trace.spans if one.name == "sample"), key=lambda one: one.begin_us):
        tokens += span.amount
        yield _counter("tokens", span.begin_us + span.took_us, tokens)
    begins = {one.step: one.begin_us + one.took_us for one in trace.spans if not one.process and one.name == "encode"}
    ends = {one.step: one.begin_us for one in trace.spans if not one.process and one.name == "receive"}
    under_way = 0
    changes = [(at_us, 1) for step, at_us in begins.items() if step in ends]
    for at_us, change in sorted([*changes, *((at_us, -1) for step, at_us in ends.items() if step in begins)]):
        under_way += change
        yield _counter("steps under way", at_us, under_way)


def _counter(name: str, at_us: int, value: int) -> Event:
    return {"name": name, "ph": "C", "ts": at_us, "pid": 0, "tid": 0, "args": {name: value}}


def _names(trace: TraceView, lanes: _Lanes) -> Iterator[Event]:
    for number, process in enumerate(trace.processes):
        name = f"{process.name} on {process.node}" if process.node else process.name
        yield {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": name}}
        yield {"name": "process_sort_index", "ph": "M", "pid": number, "tid": 0, "args": {"sort_index": number}}
    for pid, thread, name in lanes.names():
        yield {"name": "thread_name", "ph": "M", "pid": pid, "tid": thread, "args": {"name": name}}
