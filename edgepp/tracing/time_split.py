"""Where the time of an answer went: each microsecond from the request to its last token, given to one part. Pure.

While several parts work at the same time, such as two stages on two tokens, the time is shared equally between them.
While none works, it belongs to the way between processes; else to a queue; what is left is the coordinator's own
handling between two steps. So the parts add up to the answer's time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgepp.tracing.rank_spans import SUM
from edgepp.tracing.trace_view import COORDINATOR, RANK_TRACK, TraceView, ViewSpan

REST = f"{COORDINATOR}: between steps"
_BESIDE = ("detokenise", "write", "draft")
"""Spans in other threads and processes, which the next token does not wait for."""


@dataclass
class TimeSplit:
    """Microseconds of each part, before the first token and from there to the last one."""

    prompt_us: dict[str, float] = field(default_factory=dict)
    answer_us: dict[str, float] = field(default_factory=dict)
    beside_us: dict[str, int] = field(default_factory=dict)
    """What went on beside, in threads that no token waits for."""
    ranks_us: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each process that is a rank, the time in halves of layers and the time in sums, both part of computing."""
    num_tokens: int = 0

    @property
    def parts(self) -> list[str]:
        """All parts, those that took most first."""
        names = dict.fromkeys((*self.prompt_us, *self.answer_us))
        return sorted(names, key=lambda one: -self.prompt_us.get(one, 0.0) - self.answer_us.get(one, 0.0))


def split(trace: TraceView) -> TimeSplit:
    """Where the time went."""
    tokens = sorted(
        (one.begin_us + one.took_us, one.amount) for one in trace.spans if one.name == "sample" and one.amount
    )
    result = TimeSplit(num_tokens=sum(amount for _, amount in tokens))
    for span in trace.spans:
        if span.name in _BESIDE:
            result.beside_us[span.name] = result.beside_us.get(span.name, 0) + span.took_us
        elif span.track == RANK_TRACK:
            name, is_sum = trace.processes[span.process].name, span.name == SUM
            halves_us, sums_us = result.ranks_us.get(name, (0, 0))
            result.ranks_us[name] = (halves_us + (not is_sum) * span.took_us, sums_us + is_sum * span.took_us)
    if not tokens:
        return result
    first_us, last_us = tokens[0][0], tokens[-1][0]
    begin_us = min(0, *(span.begin_us for span in trace.spans))
    spans = [one for one in trace.spans if one.took_us and one.name not in _BESIDE and one.track != RANK_TRACK]
    result.prompt_us = _shares(trace, spans, begin_us, first_us)
    result.answer_us = _shares(trace, spans, first_us, last_us)
    return result


def part_of(trace: TraceView, span: ViewSpan) -> str:
    """The part that a span belongs to."""
    if span.track == "way":
        return span.name
    name = span.name.split(" ")[0] if span.track in ("engine", "compute") else span.name
    return f"{trace.processes[span.process].name}: {name}"


def _level(span: ViewSpan) -> int:
    """Whose the time is where several spans are under way: those of the lowest level."""
    return {"way": 1, "queue": 2, "request": 3}.get(span.track, 0)


def _shares(trace: TraceView, spans: Iterable[ViewSpan], begin_us: int, end_us: int) -> dict[str, float]:
    """Microseconds of each part between two times."""
    changes: list[tuple[int, int, int, str]] = []
    for span in spans:
        start, stop = max(begin_us, span.begin_us), min(end_us, span.begin_us + span.took_us)
        if start < stop:
            part, level = part_of(trace, span), _level(span)
            changes += [(start, 1, level, part), (stop, -1, level, part)]
    changes.sort()
    active: list[Counter[str]] = [Counter() for _ in range(4)]
    shares: dict[str, float] = defaultdict(float)
    at_us = begin_us
    for time_us, change, level, part in [*changes, (end_us, 0, 0, "")]:
        if time_us > at_us:
            working = next((parts for parts in active if parts), {REST: 1})
            for name in working:
                shares[name] += (time_us - at_us) / len(working)
            at_us = time_us
        if change:
            active[level][part] += change
            if not active[level][part]:
                del active[level][part]
    return dict(shares)
