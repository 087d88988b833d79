"""How long steps wait at each stage for earlier steps, derived on the coordinator. Pure: callers give the times.

No stage can measure this: the system takes frames from the network while the stage computes, and tells nobody when. The
coordinator knows when it sent each step and how long each stage computed, and each stage computes steps in the order in
which they come.
"""

from __future__ import annotations

from collections.abc import Sequence


class QueueTimes:
    """Sums of the seconds that steps waited, one per stage."""

    def __init__(self, ways_s: Sequence[float], bytes_per_s: Sequence[float]) -> None:
        """Begin with empty stages.

        ``ways_s`` holds the one-way seconds of one hidden state into each stage, ``bytes_per_s`` the rate of each of
        these links, 0 where unknown.
        """
        self._links = list(zip(ways_s, bytes_per_s, strict=True))
        self._free_at_s = [0.0] * len(self._links)
        """When each stage has computed all steps so far."""
        self.seconds = [0.0] * len(self._links)

    def add(self, sent_s: float, nbytes: int, compute_s: Sequence[float], ring_s: float) -> tuple[float, ...]:
        """Add a step of ``nbytes`` bytes that was sent at ``sent_s`` and took ``ring_s`` seconds until it returned.

        Returns the seconds that it waited at each stage.
        ``compute_s`` holds the seconds of computing per stage. Steps are added in the order in which they were sent.
        All waits of one step together count as no more than what the step spent outside of computing.
        """
        at_s, waits_s = sent_s, []
        for stage, ((way_s, bytes_per_s), busy_s) in enumerate(zip(self._links, compute_s, strict=True)):
            at_s += way_s + (nbytes / bytes_per_s if bytes_per_s else 0.0)
            waits_s.append(max(0.0, self._free_at_s[stage] - at_s))
            at_s += waits_s[-1] + busy_s
            self._free_at_s[stage] = min(at_s, sent_s + ring_s)
        total_s, most_s = sum(waits_s), max(0.0, ring_s - sum(compute_s))
        part = min(1.0, most_s / total_s) if total_s else 0.0
        for stage, wait_s in enumerate(waits_s):
            self.seconds[stage] += part * wait_s
        return tuple(part * wait_s for wait_s in waits_s)
