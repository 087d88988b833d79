"""Arithmetic of byte ranges: half-open ``(start, stop)`` pairs; results are sorted and disjoint."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def union(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """The sorted ranges, where neighbours that overlap, touch or have a gap of at most ``gap`` bytes are joined."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if stop <= start:
            continue
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


def difference(wanted: Iterable[Range], held: Iterable[Range]) -> list[Range]:
    """The parts of ``wanted`` that are not in ``held``."""
    left = union(wanted)
    for start, stop in union(held):
        left = [part for a, b in left for part in ((a, min(b, start)), (max(a, stop), b)) if part[0] < part[1]]
    return left


def covers(held: Iterable[Range], wanted: Range) -> bool:
    """Whether ``held`` contains all of ``wanted``."""
    return not difference([wanted], held)


def cut(ranges: Iterable[Range], max_bytes: int) -> list[Range]:
    """The ranges, cut into pieces of at most ``max_bytes`` bytes."""
    return [
        (position, min(position + max_bytes, stop))
        for start, stop in ranges
        for position in range(start, stop, max_bytes)
    ]


def total(ranges: Iterable[Range]) -> int:
    """Sum of the bytes of ranges that do not overlap."""
    return sum(stop - start for start, stop in ranges)
