"""How many layers each host of a given set takes. All layers cost the same, so taking them one by one is exact."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def level_shares(rates: Sequence[float], caps: Sequence[int], total: int) -> list[int] | None:
    """Counts whose greatest count / rate is the least there is; None where the caps do not allow the total.

    Each layer goes where it leaves the least count / rate; of equals to the greatest rate, then to the first.
    A host may end with none.
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
    """Counts whose sum of count / rate is the least there is, at least one for each host; None where none fits."""
    if not len(caps) <= total <= sum(caps) or not all(caps):
        return None
    counts = [1] * len(caps)
    left = total - len(caps)
    for n in sorted(range(len(caps)), key=lambda n: (-rates[n], n)):
        more = min(left, caps[n] - 1)
        counts[n] += more
        left -= more
    return counts


def layers_within(rate: float, cap: int, bound: float) -> int:
    """The most layers, up to ``cap``, with count / rate at most ``bound``."""
    count = min(cap, int(bound * rate) + 1)
    while count and count / rate > bound:
        count -= 1
    return count
