"""The trace of one request while it is recorded: steps, spans and events, and the log of the newest requests.

Whoever works for a request records what it did: threads of the coordinator by their own clock; stages by theirs, in
the headers of frames. Nothing is put together before somebody reads the trace.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from edgepp.tracing.clock_offset import SAME_CLOCK, ClockEstimate, ClockOffset

MAX_RECORDS = 100_000
"""Records of all requests of a log together: some 35 MB over four stages. The traces of older requests make room."""
MAX_RECORDS_PER_REQUEST = 60_000
"""Records of one request; later ones are only counted. A token takes about five."""
_RECORD_BYTES = 350
_UNDER_WAY = 32
"""Steps of a request that may be under way, at most, whose times are not known yet."""
DEFAULT_KEPT = 20
"""Requests whose traces a coordinator keeps."""

StepKind: TypeAlias = Literal["prefill", "decode", "guess"]
SpanName: TypeAlias = Literal[
    "tokenise", "wait for pipeline", "queue", "embed", "head", "sample", "detokenise", "write", "recovery", "draft"
]


class TracedStage(NamedTuple):
    """A stage of a ring, as a trace names it."""

    node: str
    layers: str
    pid: int


@dataclass(frozen=True)
class TracedRing:
    """The stages of a ring, and their clocks; None for a stage in this process."""

    stages: tuple[TracedStage, ...]
    clocks: tuple[ClockOffset | None, ...]

    def clock(self, stage: int, at_us: int) -> ClockEstimate:
        """How far the clock of a stage was ahead at ``at_us`` by the coordinator's clock."""
        clock = self.clocks[stage]
        return SAME_CLOCK if clock is None else clock.at(at_us)


@dataclass(slots=True)
class StepTrace:
    """One step of a request, alone or with other requests; times in seconds by ``time.perf_counter``."""

    kind: StepKind
    position: int
    """Position of the first row of the request."""
    rows: int
    """Rows of the step, those of other requests included."""
    embed_s: float
    """When embedding began."""
    embedded_s: float = 0.0
    sent_s: float = 0.0
    """When the frame was encoded, and sent."""
    marks: tuple[int, ...] = ()
    """``wire.frame_marks`` of the frame that came back."""
    received_s: float = 0.0
    """When the result was taken from the socket."""
    back_s: float = 0.0
    """When the result was decoded; 0 for a step that has not come back, or was void."""
    verdict: str = ""
    """Of a guess: ``right`` or ``void``; empty until that is known."""
    ring: TracedRing | None = None
    rank_marks: bytes = b""
    """``wire.rank_marks`` of the frame that came back."""


class Span(NamedTuple):
    """Something that a thread of the coordinator did for a request, in seconds by ``time.perf_counter``."""

    name: SpanName
    began_s: float
    ended_s: float
    amount: int
    """Tokens, bytes or positions, whichever the name suggests; 0 for nothing to count."""


class TraceEvent(NamedTuple):
    """Something that happened at one time."""

    name: str
    at_s: float
    facts: Mapping[str, Any]


@dataclass(eq=False)
class RequestTrace:
    """What is recorded of one request, by several threads: each list is only appended to."""

    id: str
    began_s: float
    aliases: list[str] = field(default_factory=list)
    """Other names of the request, such as the id of the response."""
    owner: str = ""
    """Who asked: the key of a node, or ``local`` and the name of an API key."""
    steps: list[StepTrace] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    events: list[TraceEvent] = field(default_factory=list)
    num_dropped: int = 0
    """Records that were not kept."""
    _rank_bytes: int = 0
    """Bytes of times of ranks, but for the newest steps."""

    @property
    def num_records(self) -> int:
        """Steps, spans and events; the times of ranks count as the records that would take as many bytes."""
        return len(self.steps) + len(self.spans) + len(self.events) + self._rank_bytes // _RECORD_BYTES

    def _has_room(self) -> bool:
        if self.num_records < MAX_RECORDS_PER_REQUEST:
            return True
        self.num_dropped += 1
        return False

    def span(self, name: SpanName, began_s: float, ended_s: float, amount: int = 0) -> None:
        """Record a span."""
        if self._has_room():
            self.spans.append(Span(name, began_s, ended_s, amount))

    def event(self, name: str, at_s: float, **facts: Any) -> None:
        """Record an event."""
        if self._has_room():
            self.events.append(TraceEvent(name, at_s, facts))

    def step(self, step: StepTrace) -> None:
        """Record a step that is being sent; whoever has it adds its times."""
        if self._has_room():
            if len(self.steps) >= _UNDER_WAY:
                self._rank_bytes += len(self.steps[-_UNDER_WAY].rank_marks)
            self.steps.append(step)

    def settle_guesses(self, position: int, *, right: bool) -> None:
        """Note that the guess for ``position`` was right, or that this guess and all later ones are void."""
        for step in reversed(self.steps):
            if step.kind != "guess" or step.verdict or step.position < position:
                return
            if not right:
                step.verdict = "void"
            elif step.position == position:
                step.verdict = "right"


class TraceLog:
    """The traces of the newest requests. Safe from any thread."""

    def __init__(self, kept: int = DEFAULT_KEPT) -> None:
        """Keep the traces of the ``kept`` newest requests; 0 for none."""
        self.kept = kept
        self._traces: deque[RequestTrace] = deque(maxlen=kept)
        self._lock = threading.Lock()

    def begin(self, request: str, began_s: float, owner: str = "") -> RequestTrace | None:
        """Begin the trace of a request; None where none is kept."""
        if not self.kept:
            return None
        trace = RequestTrace(request, began_s, owner=owner)
        with self._lock:
            while self._traces and sum(one.num_records for one in self._traces) > MAX_RECORDS:
                self._traces.popleft()
            self._traces.append(trace)
        return trace

    def find(self, name: str) -> RequestTrace | None:
        """The newest trace of a request with this id or other name."""
        return next((one for one in self if name in (one.id, *one.aliases)), None)

    def __iter__(self) -> Iterator[RequestTrace]:
        """All traces, the newest first."""
        with self._lock:
            return iter(list(reversed(self._traces)))
