"""`edgepp trace`, and `--trace` of `edgepp chat` and `edgepp serve`: traces as tables, and as files for Perfetto."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from edgepp.errors import UsageError
from edgepp.printable import json_line
from edgepp.tracing.chrome_trace import chrome_trace, chrome_traces
from edgepp.tracing.request_trace import RequestTrace
from edgepp.tracing.time_split import TimeSplit, split
from edgepp.tracing.trace_view import TraceView, view
from edgepp.ui.peers import connect
from edgepp.ui.screen import Rows, Screen, say, say_json


def list_requests(peer: str | None, *, as_json: bool) -> None:
    """Print the recent requests of the cluster that this machine may see.

    Raises:
        EdgeppError: the coordinator is not found, or keeps no traces.
    """
    with connect(peer) as client:
        found = client.call("trace")
    if as_json:
        say_json(found)
        return
    table = Rows("REQUEST", ">AGO", ">PROMPT", ">TOKENS", "ENDED", "ALSO")
    for one in found["requests"]:
        ago = f"{one['seconds_ago']:.0f} s"
        counts = str(one["prompt_tokens"]), str(one["tokens"])
        table.add_row(one["request"], ago, *counts, one["ended"] or "not yet", ", ".join(one["aliases"]))
    if found["requests"]:
        Screen().show(table)
    else:
        say("no requests yet; ask one with `edgepp chat`")


def show_request(request: str, output: str | None, peer: str | None, *, as_json: bool) -> None:
    """Print the parts of a request's time, and write its trace to the file ``output``.

    An empty ``output`` means the file ``REQUEST.trace.json`` in the current folder; None writes no file.

    Raises:
        EdgeppError: the coordinator is not found, or keeps no such trace; or the file cannot be written.
    """
    with connect(peer) as client:
        trace = client.trace(request)
    path = None if output is None else Path(output or f"{re.sub('[^A-Za-z0-9._-]', '_', trace.request)}.trace.json")
    if path is not None:
        write(trace, path)
    if as_json:
        say_json(report(trace) | ({"file": str(path)} if path is not None else {}))
        return
    Screen().show(*tables(trace))
    if path is not None:
        say(f"written to {path}: open it at https://ui.perfetto.dev", dim=True)


def write(trace: TraceView, path: Path) -> None:
    """Write a trace as a file for Perfetto.

    Raises:
        UsageError: the file cannot be written.
    """
    _write(json_line(chrome_trace(trace)), path)


def write_all(traces: Iterable[RequestTrace], path: Path) -> None:
    """Write traces, in any order, as one file for Perfetto; without traces the file has no events.

    Raises:
        UsageError: the file cannot be written.
    """
    known = sorted(traces, key=lambda one: one.began_s)
    later_us = [round(1e6 * (one.began_s - known[0].began_s)) for one in known]
    _write(json_line(chrome_traces(list(zip(map(view, known), later_us, strict=True)))), path)


def check_writable(path: Path) -> None:
    """Check that a trace can be written to ``path`` later, and leave what is there as it is.

    Raises:
        UsageError: the file cannot be written.
    """
    _write("", path, mode="a")


def _write(text: str, path: Path, mode: Literal["w", "a"] = "w") -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "name another file") from error


def report(trace: TraceView) -> dict[str, Any]:
    """The JSON object of `edgepp trace --json`; names in ``_us`` are microseconds."""
    found = split(trace)
    return {
        "request": trace.request,
        "aliases": trace.aliases,
        "tokens": found.num_tokens,
        "prompt_us": {part: round(us, 1) for part, us in found.prompt_us.items()},
        "answer_us": {part: round(us, 1) for part, us in found.answer_us.items()},
        "beside_us": found.beside_us,
        "ranks_us": {name: {"halves": halves, "sums": sums} for name, (halves, sums) in found.ranks_us.items()},
        "guesses": _guesses(trace),
        "clock_error_us": trace.clock_error_us,
        "records_dropped": trace.num_dropped,
        "processes": [one.__dict__ for one in trace.processes],
    }


def tables(trace: TraceView) -> list[Rows | str]:
    """The table of all parts, and lines about guesses, clocks and lost records."""
    found = split(trace)
    if not found.num_tokens:
        return [f"request {trace.request} has no token yet"]
    table = Rows("PART", ">PROMPT, ms", ">ANSWER, ms", ">µs PER TOKEN", ">SHARE")
    later = max(1, found.num_tokens - 1)
    prompt_us, answer_us = sum(found.prompt_us.values()), sum(found.answer_us.values())
    for part in found.parts:
        before, after = found.prompt_us.get(part, 0.0), found.answer_us.get(part, 0.0)
        share = 100 * (before + after) / max(1.0, prompt_us + answer_us)
        table.add_row(part, f"{before / 1e3:.1f}", f"{after / 1e3:.1f}", f"{after / later:.0f}", f"{share:.1f} %")
    table.add_row("together", f"{prompt_us / 1e3:.1f}", f"{answer_us / 1e3:.1f}", f"{answer_us / later:.0f}", "")
    return [table, *_remarks(trace, found)]


def _remarks(trace: TraceView, found: TimeSplit) -> list[str]:
    lines = [f"{found.num_tokens} tokens; parts at the same moment share its time equally"]
    if found.beside_us:
        beside = ", ".join(f"{name} {us / 1e3:.1f} ms" for name, us in found.beside_us.items())
        lines.append(f"beside, in other threads: {beside}")
    for name, (halves_us, sums_us) in found.ranks_us.items():
        rank = name if "rank" in name else f"{name}, rank 0"
        lines.append(f"{rank}: {halves_us / 1e3:.1f} ms in halves of layers, {sums_us / 1e3:.1f} ms in sums")
    guesses = _guesses(trace)
    if guesses["sent"]:
        lines.append(f"guesses: {guesses['sent']} sent, {guesses['right']} right, {guesses['void']} void")
    if len(trace.processes) > 2 or trace.clock_error_us:
        error = f"{trace.clock_error_us} µs" if trace.clock_error_us >= 0 else "unknown: the stage was not asked yet"
        lines.append(f"clocks of stages are known to {error}")
    if trace.num_dropped:
        lines.append(f"{trace.num_dropped} records did not fit, so the end of the trace is missing")
    return lines


def _guesses(trace: TraceView) -> dict[str, int]:
    sent = sum(span.name == "embed guess" for span in trace.spans)
    verdicts = [event.name for event in trace.events]
    return {"sent": sent, "right": verdicts.count("guess right"), "void": verdicts.count("guess void")}
