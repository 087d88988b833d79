"""The wait before a retry, which each failure doubles, up to a maximum."""

from __future__ import annotations


def doubled_s(first_s: float, doublings: int, max_s: float) -> float:
    """``first_s`` doubled ``doublings`` times, at most ``max_s``; in seconds."""
    return min(max_s, first_s * 2.0 ** min(doublings, 32))
