"""When the stages handled a traced frame: times that travel in the frame's own header. Pure.

``trace`` of a frame is empty unless a traced request is among those of the frame. Else its first number is when the
coordinator sent the frame, and each stage that the frame has passed has added the five numbers of ``StageMarks``, the
first as microseconds of the stage's own clock (``time.perf_counter``), the others as microseconds since the one before.
So tracing needs no message of its own, and no memory in the stages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

MAX_TRACED_STAGES = 32
"""Stages of a ring whose frames may be traced; the header has no room for more."""
_MARKS = 5


class StageMarks(NamedTuple):
    """When a stage handled a frame, in microseconds of its own clock."""

    received_us: int
    """The frame was taken from the socket."""
    checked_us: int
    """It was checked and decoded; it may have to wait then."""
    begun_us: int
    """Computing began."""
    computed_us: int
    """Computing ended."""
    encoded_us: int
    """The result was encoded; it is sent at once."""


Trace: TypeAlias = tuple[int, ...]


def clock_us() -> int:
    """Microseconds of this process's clock, which all processes of a machine share on Linux and macOS."""
    return time.perf_counter_ns() // 1000


def computed(trace: Trace, received_us: int, checked_us: int, begun_us: int, computed_us: int) -> Trace:
    """``trace`` with all but the last mark of one more stage."""
    return (
        *trace,
        received_us,
        max(0, checked_us - received_us),
        max(0, begun_us - checked_us),
        max(0, computed_us - begun_us),
    )


def encoded(trace: Trace) -> Trace:
    """``trace`` with the last mark of the stage that ``computed`` added: now."""
    return (*trace, max(0, clock_us() - sum(trace[1 - _MARKS :])))


def is_whole(trace: Sequence[int], stages: int) -> bool:
    """Whether ``trace`` is empty, or has the marks of this number of ``stages``."""
    return len(trace) in (0, 1 + _MARKS * stages)


def stage_marks(trace: Sequence[int]) -> Iterator[StageMarks]:
    """The marks of each stage in a trace that is well-formed."""
    for start in range(1, len(trace), _MARKS):
        at_us, times = 0, []
        for number in trace[start : start + _MARKS]:
            at_us += number
            times.append(at_us)
        yield StageMarks(*times)
