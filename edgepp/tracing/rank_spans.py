"""The ranks of a stage in a trace: what each did in a step, on the coordinator's clock. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from edgepp.tracing.clock_offset import SAME_CLOCK, ClockOffset
from edgepp.tracing.request_trace import StepTrace, TracedRing, TracedStage
from edgepp.wire.rank_marks import RankMarks, ahead_of, ranks_of

_HALVES = ("attention", "MLP")
SUM = "sum"
"""Name of the spans in which a rank waits for the partial sums of the others, and adds."""


class RankSpan(NamedTuple):
    """One half of a layer, or one sum, of a rank."""

    name: str
    begin_us: int
    end_us: int


class RankWork(NamedTuple):
    """What a rank of a stage did in a step."""

    stage: int
    rank: int
    error_us: int
    """Times are wrong by at most this, beside those of the coordinator; -1 for unknown."""
    spans: tuple[RankSpan, ...]


class RankClocks:
    """The clocks of ranks beside rank 0 of their stages, by the times of the steps of a trace."""

    def __init__(self, steps: Iterable[StepTrace]) -> None:
        """Learn from ``steps``; each shows in itself how the clocks of two ranks differ (``wire.rank_marks``)."""
        self._clocks: dict[tuple[TracedStage, int], ClockOffset] = defaultdict(ClockOffset)
        for step in steps:
            for stage, first, others in _stages_of(step):
                for other in others:
                    if (bounds := ahead_of(first, other)) is not None:
                        least_us, most_us = bounds
                        at_us = other.begun_us
                        clock = self._clocks[_ring(step).stages[stage], other.rank]
                        clock.add(at_us - most_us, at_us, at_us, at_us - least_us)

    def work(self, step: StepTrace) -> Iterator[RankWork]:
        """What each rank did in a step that has come back, by the coordinator's clock.

        A rank whose times contradict those of rank 0 is left out.
        """
        sent_us, received_us = int(step.sent_s * 1e6), int(step.received_s * 1e6)
        for stage, first, others in _stages_of(step):
            ring = _ring(step)
            clock = ring.clock(stage, sent_us)
            for one in (first, *(other for other in others if ahead_of(first, other) is not None)):
                beside = self._clocks[ring.stages[stage], one.rank].at(first.begun_us) if one.rank else SAME_CLOCK
                known = clock.is_known and beside.is_known
                error_us = round(clock.error_us + beside.error_us) if known else -1
                spans = tuple(_spans(one, beside.offset_us + clock.offset_us, sent_us, received_us))
                yield RankWork(stage, one.rank, error_us, spans)


def _ring(step: StepTrace) -> TracedRing:
    if step.ring is None:
        raise ValueError("a step that was not sent")
    return step.ring


def _stages_of(step: StepTrace) -> Iterator[tuple[int, RankMarks, list[RankMarks]]]:
    """Number, rank 0 and other ranks of each stage of several ranks that computed a step."""
    if step.ring is None or not step.rank_marks or not step.back_s:
        return
    marks = (one for one in ranks_of(step.rank_marks) if one.stage < len(_ring(step).stages))
    for stage, group in groupby(marks, key=lambda one: one.stage):
        first, *others = group
        if not first.rank:
            yield stage, first, others


def _spans(marks: RankMarks, ahead_us: float, sent_us: int, received_us: int) -> Iterator[RankSpan]:
    """Halves and sums in turn, kept between the sending and the receiving of the frame, which no clock can leave."""
    at_us = min(max(sent_us, int(marks.begun_us - ahead_us)), received_us)
    for number, end in enumerate(marks.ends_us):
        end_us = min(max(at_us, int(end - ahead_us)), received_us)
        yield RankSpan(SUM if number % 2 else _HALVES[number // 2 % len(_HALVES)], at_us, end_us)
        at_us = end_us
