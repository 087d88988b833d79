"""Arithmetic of byte ranges: half-open ``(start, stop)`` pairs, kept in order and apart."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def union(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """The ranges in order; those that touch, or lie at most ``gap`` bytes apart, become one."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if stop <= start:
            continue
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


def minus(wanted: Iterable[Range], held: Iterable[Range]) -> list[Range]:
    """What of ``wanted`` lies outside ``held``."""
    left = union(wanted)
    for start, stop in union(held):
        left = [part for a, b in left for part in ((a, min(b, start)), (max(a, stop), b)) if part[0] < part[1]]
    return left


def covers(held: Iterable[Range], wanted: Range) -> bool:
    """Whether all of ``wanted`` lies inside ``held``."""
    return not minus([wanted], held)


def cut(ranges: Iterable[Range], size: int) -> list[Range]:
    """The ranges in pieces of at most ``size`` bytes."""
    return [(position, min(position + size, stop)) for start, stop in ranges for position in range(start, stop, size)]


def total(ranges: Iterable[Range]) -> int:
    """Bytes in ranges that do not overlap."""
    return sum(stop - start for start, stop in ranges)
