"""Number of layers per host for a given set of hosts.

All layers cost the same, so giving out one layer after the other is exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def level_shares(rates: Sequence[float], caps: Sequence[int], total: int) -> list[int] | None:
    """Counts with the smallest possible maximum of count / rate; None if the sum of ``caps`` is below ``total``.

    Each layer goes to the host with the smallest count / rate after it; ties go to the greatest rate, then to the first
    host. A host may get no layer.
    """
    if sum(caps) < total:
        return None
    counts = [0] * len(caps)
    heap = [(1 / rate, -rate, n) for n, (rate, cap) in enumerate(zip(rates, caps, strict=True)) if cap]
    heapq.heapify(heap)
    for _ in range(total):
        _, _, n = heap[0]
        counts[n] += 1
        if counts[n] < caps[n]:
            heapq.heapreplace(heap, ((counts[n] + 1) / rates[n], -rates[n], n))
        else:
            heapq.heappop(heap)
    return counts


def fill_shares(rates: Sequence[float], caps: Sequence[int], total: int) -> list[int] | None:
    """Counts with the smallest possible sum of count / rate, at least 1 per host; None if ``caps`` do not allow it."""
    if not len(caps) <= total <= sum(caps) or not all(caps):
        return None
    counts = [1] * len(caps)
    left = total - len(caps)
    for n in sorted(range(len(caps)), key=lambda n: (-rates[n], n)):
        added = min(left, caps[n] - 1)
        counts[n] += added
        left -= added
    return counts


def layers_within(rate: float, cap: int, bound: float) -> int:
    """Greatest count up to ``cap`` with count / rate at most ``bound``."""
    count = min(cap, int(bound * rate) + 1)
    while count and count / rate > bound:
        count -= 1
    return count
