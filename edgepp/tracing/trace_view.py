"""A trace as people and programs read it: every span on the coordinator's clock, as whole microseconds since its begin.

Process 0 is the coordinator; each stage that worked for the request is another one. Times of a stage are moved by what
is known of its clock, and then kept between the sending and the receiving of the frame, which no clock can leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from edgepp.tracing.rank_spans import RankClocks
from edgepp.tracing.request_trace import RequestTrace, StepTrace, TracedRing, TracedStage
from edgepp.wire.frame_marks import stage_marks
from edgepp.wire.rank_marks import ranks_of

_MAX_SPANS = 5000
"""Spans of a trace that are told at a time: 300 kB, and some 50 ms of the coordinator's thread."""
COORDINATOR = "coordinator"
_TRACKS = {
    "tokenise": "text",
    "detokenise": "text",
    "write": "http",
    "head": "head",
    "sample": "head",
    "draft": "draft",
}
"""Tracks of spans of the coordinator; other spans are of the track ``request``."""
_OWN_SPANS, _STAGE_SPANS = 4, 5
"""Spans of a step by the coordinator, and by each stage."""
RANK_TRACK = "rank"
"""Track of the halves and sums of a rank, which are parts of its stage's computing."""
_RANK_SPAN_BYTES = 2
"""Bytes of a span in ``StepTrace.rank_marks``."""
TRIP_TRACKS = ("way", "queue", "request", "draft")
"""Tracks of what no thread does, so that spans of one track may overlap."""


class ViewSpan(NamedTuple):
    """Something that took time."""

    process: int
    track: str
    """Part of the process: ``engine``, ``head``, ``compute``, …"""
    name: str
    begin_us: int
    took_us: int
    step: int = -1
    """Number of the step that it belongs to, from 0; -1 for none."""
    amount: int = 0
    """Rows, tokens or characters."""


_Ranks = dict[tuple[TracedStage, int], int]
"""Number of the process of each rank of a stage."""


class ViewEvent(NamedTuple):
    """Something that happened at one time, on the coordinator."""

    name: str
    at_us: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class ViewProcess:
    """The coordinator or a stage."""

    name: str
    node: str = ""
    pid: int = 0
    clock_error_us: int = 0
    """Times of the process are wrong by at most this, beside those of the coordinator; -1 for unknown."""
    drift_ppm: float = 0.0
    """Millionths by which its clock is fast."""


@dataclass
class TraceView:
    """A trace, or a part of it."""

    request: str
    aliases: list[str] = field(default_factory=list)
    num_dropped: int = 0
    processes: list[ViewProcess] = field(default_factory=list)
    spans: list[ViewSpan] = field(default_factory=list)
    events: list[ViewEvent] = field(default_factory=list)
    next: int | None = None
    """The first record of the next part; None for the last one."""

    @property
    def clock_error_us(self) -> int:
        """The largest error of any clock; -1 where one is unknown."""
        errors = [one.clock_error_us for one in self.processes]
        return -1 if -1 in errors else max(errors, default=0)


def records_per_page(trace: RequestTrace) -> int:
    """Records of a trace that are told at a time: the fewer, the more stages add their spans to each step."""
    steps = list(trace.steps)
    rings = {id(step.ring): step.ring for step in steps if step.ring is not None}
    stages = max((len(ring.stages) for ring in rings.values()), default=0)
    of_ranks = max((len(step.rank_marks) // _RANK_SPAN_BYTES for step in steps), default=0)
    return _MAX_SPANS // (_OWN_SPANS + _STAGE_SPANS * stages + of_ranks)


def view(trace: RequestTrace, first: int = 0, count: int | None = None) -> TraceView:
    """``count`` records of a trace from number ``first`` on; all records by default."""
    steps, spans, events = list(trace.steps), list(trace.spans), list(trace.events)
    stop = len(steps) + len(spans) + len(events) if count is None else first + count
    found = TraceView(trace.id, list(trace.aliases), trace.num_dropped)
    numbers, ranks = _add_processes(found, steps)
    origin_us = int(trace.began_s * 1e6)
    clocks = RankClocks(steps[first:stop])
    for number in range(first, min(stop, len(steps))):
        found.spans += _of_step(steps[number], number, origin_us, numbers)
        found.spans += _of_ranks(found, clocks, steps[number], number, origin_us, ranks)
        if steps[number].verdict:
            at_us = int(steps[number].embed_s * 1e6) - origin_us
            found.events.append(ViewEvent(f"guess {steps[number].verdict}", at_us, {"step": number}))
    begin, end = (max(0, at - len(steps)) for at in (first, stop))
    for span in spans[begin:end]:
        begin_us, end_us = int(span.began_s * 1e6), int(span.ended_s * 1e6)
        track = _TRACKS.get(span.name, "request")
        found.spans.append(ViewSpan(0, track, span.name, begin_us - origin_us, end_us - begin_us, amount=span.amount))
    begin, end = (max(0, at - len(spans)) for at in (begin, end))
    found.events += [ViewEvent(one.name, int(one.at_s * 1e6) - origin_us, dict(one.facts)) for one in events[begin:end]]
    found.next = stop if stop < len(steps) + len(spans) + len(events) else None
    return found


def _add_processes(found: TraceView, steps: Sequence[StepTrace]) -> tuple[dict[TracedStage, int], _Ranks]:
    """Add the coordinator, all stages and their ranks; the numbers of the processes of stages, and of ranks."""
    found.processes.append(ViewProcess(COORDINATOR))
    numbers: dict[TracedStage, int] = {}
    ranks: _Ranks = {}
    seen: set[int] = set()
    seen_ranks: set[int] = set()
    for step in steps:
        ring = step.ring
        if ring is not None and id(ring) not in seen:
            seen.add(id(ring))
            _add_stages(found, ring, int(step.sent_s * 1e6), numbers)
        if ring is not None and step.rank_marks and id(ring) not in seen_ranks:
            seen_ranks.add(id(ring))
            _add_ranks(found, ring, step.rank_marks, numbers, ranks)
    return numbers, ranks


def _add_stages(found: TraceView, ring: TracedRing, at_us: int, numbers: dict[TracedStage, int]) -> None:
    for index, stage in enumerate(ring.stages):
        if stage in numbers:
            continue
        numbers[stage] = len(found.processes)
        clock = ring.clock(index, at_us)
        error_us = round(clock.error_us) if clock.is_known else -1
        name = f"stage {index}, layers {stage.layers}"
        found.processes.append(ViewProcess(name, stage.node, stage.pid, error_us, round(clock.drift * 1e6, 3)))


def _add_ranks(
    found: TraceView, ring: TracedRing, marks: bytes, numbers: dict[TracedStage, int], ranks: _Ranks
) -> None:
    """Add the ranks of a ring's stages; rank 0 is the process of its stage."""
    for one in ranks_of(marks):
        stage = ring.stages[one.stage] if one.stage < len(ring.stages) else None
        if stage is None or (stage, one.rank) in ranks:
            continue
        if not one.rank:
            ranks[stage, 0] = numbers[stage]
            continue
        ranks[stage, one.rank] = len(found.processes)
        found.processes.append(ViewProcess(f"stage {one.stage}, layers {stage.layers}, rank {one.rank}"))


def _of_ranks(
    found: TraceView, clocks: RankClocks, step: StepTrace, number: int, origin_us: int, ranks: _Ranks
) -> Iterator[ViewSpan]:
    """The halves and sums of each rank in a step; the error of a rank's clock grows to the largest one."""
    for work in clocks.work(step):
        process = ranks.get((step.ring.stages[work.stage], work.rank)) if step.ring is not None else None
        if process is None:
            continue
        known = found.processes[process]
        if known.clock_error_us >= 0 and (work.error_us < 0 or work.error_us > known.clock_error_us):
            found.processes[process] = replace(known, clock_error_us=work.error_us)
        for span in work.spans:
            begin_us = span.begin_us - origin_us
            yield ViewSpan(process, RANK_TRACK, span.name, begin_us, span.end_us - span.begin_us, number)


def processes_of(earlier: Sequence[ViewProcess], later: Sequence[ViewProcess]) -> list[ViewProcess]:
    """The processes of two parts of a trace together, of which the later part knows at least as many.

    Of each clock, the larger error.
    """
    known = {number: one.clock_error_us for number, one in enumerate(earlier)}
    found = []
    for number, one in enumerate(later):
        errors = (one.clock_error_us, known.get(number, one.clock_error_us))
        found.append(replace(one, clock_error_us=-1 if -1 in errors else max(errors)))
    return found


def _of_step(step: StepTrace, number: int, origin_us: int, numbers: dict[TracedStage, int]) -> Iterator[ViewSpan]:
    """The spans of one step, in the order of its trip."""

    def span(process: int, track: str, name: str, begin_us: int, end_us: int) -> ViewSpan:
        return ViewSpan(process, track, name, begin_us - origin_us, max(0, end_us - begin_us), number, step.rows)

    embed_us, embedded_us, sent_us = (int(s * 1e6) for s in (step.embed_s, step.embedded_s, step.sent_s))
    if embedded_us:
        yield span(0, "engine", f"embed {step.kind}", embed_us, embedded_us)
    if sent_us:
        yield span(0, "engine", "encode", embedded_us, sent_us)
    if not step.back_s or step.ring is None:
        return
    left_us = at_us = sent_us
    received_us = int(step.received_s * 1e6)
    for index, marks in enumerate(stage_marks(step.marks)):
        process = numbers[step.ring.stages[index]]
        clock = step.ring.clock(index, sent_us)
        mapped = []
        for mark_us in marks:
            at_us = min(max(at_us, int(mark_us - clock.offset_us)), received_us)
            mapped.append(at_us)
        yield span(process, "way", f"way to stage {index}", left_us, mapped[0])
        for track, name, begin_us, end_us in zip(
            ("compute", "queue", "compute", "compute"),
            ("receive", "queue", f"compute {step.kind}", "encode"),
            mapped[:-1],
            mapped[1:],
            strict=True,
        ):
            yield span(process, track, name, begin_us, end_us)
        left_us = mapped[-1]
    if step.marks:
        yield span(0, "way", "way back", left_us, received_us)
        yield span(0, "engine", "receive", received_us, int(step.back_s * 1e6))
