"""A strict reader of the Trace Event Format, as its public description defines it and Perfetto reads it.

The description is "Trace Event Format" (Nat Duca, Dan Sinclair; Google, 2016). A trace that passes has no event that a
viewer would drop, repair or draw elsewhere.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

Event = dict[str, Any]
_FIELDS = {"name", "cat", "ph", "ts", "pid", "tid", "args"}
_MORE = {"X": {"dur"}, "b": {"id"}, "e": {"id"}, "s": {"id"}, "t": {"id"}, "f": {"id", "bp"}, "i": {"s"}, "C": set()}
_METADATA = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index"}


def read(text: str) -> dict[str, Any]:
    """The trace in ``text``; an assertion fails where the text is not in the format."""
    trace: dict[str, Any] = json.loads(text)
    assert set(trace) == {"displayTimeUnit", "metadata", "traceEvents"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    named = _named(events)
    for event in events:
        if event["ph"] != "M":
            _check(event, named)
    _check_slices(events)
    _check_pairs(events)
    _check_arrows(events)
    return trace


def _named(events: list[Event]) -> set[tuple[int, int]]:
    """Processes and threads that metadata events name; thread 0 stands for the process itself."""
    named = set()
    for event in events:
        if event["ph"] == "M":
            assert set(event) == {"name", "ph", "pid", "tid", "args"}
            assert set(event["args"]) == {_METADATA[event["name"]]}
            named.add((event["pid"], event["tid"]))
    return named


def _check(event: Event, named: set[tuple[int, int]]) -> None:
    phase = event["ph"]
    extra = set(event) - _FIELDS
    assert extra <= _MORE[phase], event
    assert phase == "f" or extra == _MORE[phase], event
    assert isinstance(event["name"], str), event
    assert event["name"], event
    for field in ("ts", "dur", "pid", "tid"):
        if field in event:
            assert type(event[field]) is int, event
            assert event[field] >= 0 or field == "ts", event
    assert isinstance(event.get("args", {}), dict), event
    assert (event["pid"], event["tid"]) in named, event
    if phase == "C":
        assert all(type(value) in (int, float) for value in event["args"].values()), event
    if phase == "i":
        assert event["s"] in "gpt", event


def _check_slices(events: list[Event]) -> None:
    """Complete events of one thread lie beside or within each other."""
    threads: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
    for slices in threads.values():
        open_until: list[int] = []
        for event in sorted(slices, key=lambda one: (one["ts"], -one["dur"])):
            begin, end = event["ts"], event["ts"] + event["dur"]
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1], event
            open_until.append(end)


def _check_pairs(events: list[Event]) -> None:
    """Each asynchronous event ends once, not before it began."""
    begun: dict[tuple[str, str, str], int] = {}
    for event in events:
        key = (event.get("cat", ""), str(event.get("id")), event["name"])
        if event["ph"] == "b":
            assert key not in begun, event
            begun[key] = event["ts"]
        elif event["ph"] == "e":
            assert begun.pop(key) <= event["ts"], event
    assert not begun


def _check_arrows(events: list[Event]) -> None:
    """Each arrow begins, passes and ends within slices, and never goes back in time."""
    slices = {(one["pid"], one["tid"], one["ts"]) for one in events if one["ph"] == "X"}
    arrows: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            assert (event["pid"], event["tid"], event["ts"]) in slices, event
            arrows[event["id"]].append(event)
    for arrow in arrows.values():
        phases = "".join(event["ph"] for event in arrow)
        assert phases[0] == "s", arrow
        assert phases[-1] == "f", arrow
        assert set(phases[1:-1]) <= {"t"}, arrow
        assert [event["ts"] for event in arrow] == sorted(event["ts"] for event in arrow), arrow
