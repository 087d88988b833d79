"""The ring of a simulated pipeline: links and stages that each take one step after the other.

The time of a step's return is known when the step is sent. Only guesses that turn out wrong change it later: their
steps are void, and a stage drops a void step that still waits there when the step with the drawn token arrives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.engine.scheduler import MicroBatch, Step
from edgepp.simulator.costs import HEADER_BYTES, Replica


@dataclass(eq=False)
class Trip:
    """A step on its way through the ring."""

    step: Step
    sent_s: float
    rows: int
    """Rows that travel to the stages."""
    wanted: int
    """Rows that return."""
    costs_s: Sequence[float]
    """Seconds of computing per stage."""
    at_s: float
    """Time of its latest arrival or departure; in the end that of its return, or of its drop."""
    stages_done: int = 0
    """Stages that compute it: all, except for a void step that one of them drops."""
    voided_by: Trip | None = None
    """The step with the drawn token, which makes this one void."""
    links_free_s: list[float] = field(default_factory=list)
    """When each link that it takes has carried all earlier steps."""
    stages_free_s: list[float] = field(default_factory=list)
    """When each stage that it reaches has computed all earlier steps."""

    @property
    def slowest_s(self) -> float:
        """Seconds of the stage that computes longest."""
        return max(self.costs_s)


class SimRing:
    """Links and stages of one pipeline, and the steps on their way."""

    def __init__(self, replica: Replica, now_s: float) -> None:
        """Begin with an empty ring."""
        self._latency_s = [link.latency_s for link in replica.links]
        self._byte_s = [1 / link.bytes_per_s for link in replica.links]
        self._row_bytes = replica.row_bytes
        self._links_free_s = [now_s] * len(replica.links)
        self._stages_free_s = [now_s] * len(replica.stages)
        self.worked_s = [0.0] * len(replica.stages)
        """Seconds for which each stage has computed, the steps on their way included."""
        self._awaited: deque[Trip] = deque()
        self._under_way: deque[Trip] = deque()
        """The awaited steps, and those void ones that may still keep a stage busy."""

    @property
    def next_back_s(self) -> float | None:
        """When the next awaited step returns; None in an empty ring."""
        return self._awaited[0].at_s if self._awaited else None

    def send(self, step: Step, now_s: float, rows: int, wanted: int, costs_s: Sequence[float]) -> None:
        """Send a step of ``rows`` rows, of which ``wanted`` return; earlier steps at its positions are void."""
        trip = Trip(step, now_s, rows, wanted, costs_s, now_s)
        self._under_way.append(trip)
        first = self._void(trip)
        if first is None:
            self._schedule([trip])
            return
        trips = list(self._under_way)
        trips = trips[trips.index(first) :]
        self._links_free_s, self._stages_free_s = first.links_free_s, first.stages_free_s
        for earlier in trips:
            earlier.at_s, earlier.links_free_s, earlier.stages_free_s = earlier.sent_s, [], []
            for stage in range(earlier.stages_done):
                self.worked_s[stage] -= earlier.costs_s[stage]
        self._schedule(trips)

    def take(self, until_s: float) -> Trip | None:
        """The oldest awaited step, if it has returned by ``until_s``; it is awaited no longer."""
        if not self._awaited or self._awaited[0].at_s > until_s:
            return None
        return self._awaited.popleft()

    def lose(self) -> None:
        """Lose all steps; the stages stay busy."""
        self._awaited.clear()

    def _void(self, trip: Trip) -> Trip | None:
        """Await steps no longer that ``trip`` makes void; the first of them."""
        while self._under_way[0].at_s <= trip.sent_s and self._under_way[0] is not trip:
            self._under_way.popleft()
        first = None
        if isinstance(trip.step, MicroBatch):
            starts = dict(zip(trip.step.sequences, trip.step.positions, strict=True))
            void = [earlier for earlier in self._awaited if _begins_behind(earlier.step, starts)]
            for earlier in void:
                earlier.voided_by = trip
                self._awaited.remove(earlier)
            first = next((earlier for earlier in void if earlier in self._under_way), None)
        self._awaited.append(trip)
        return first

    def _schedule(self, trips: Sequence[Trip]) -> None:
        """Give each step the times of its way, in the order of sending, one stage after the other."""
        for stage, free_s in enumerate(self._stages_free_s):
            self._cross(stage, trips)
            kept = []
            for trip in trips:
                trip.stages_done = stage
                trip.stages_free_s.append(free_s)
                start_s = max(trip.at_s, free_s)
                if trip.voided_by is not None and start_s >= trip.voided_by.at_s:
                    trip.at_s = trip.voided_by.at_s
                    continue
                trip.at_s = free_s = start_s + trip.costs_s[stage]
                self.worked_s[stage] += trip.costs_s[stage]
                kept.append(trip)
            self._stages_free_s[stage], trips = free_s, kept
        for trip in trips:
            trip.stages_done = len(self._stages_free_s)
        self._cross(len(self._stages_free_s), trips)

    def _cross(self, link: int, trips: Sequence[Trip]) -> None:
        """Carry steps over a link, one after the other."""
        free_s, last = self._links_free_s[link], link == len(self._links_free_s) - 1
        for trip in trips:
            trip.links_free_s.append(free_s)
            size = HEADER_BYTES + (trip.wanted if last else trip.rows) * self._row_bytes
            free_s = max(trip.at_s, free_s) + size * self._byte_s[link]
            trip.at_s = free_s + self._latency_s[link]
        self._links_free_s[link] = free_s


def _begins_behind(step: Step, starts: dict[int, int]) -> bool:
    """Whether a step is of one row at or behind the position that ``starts`` has for its sequence."""
    if not isinstance(step, MicroBatch) or len(step.sequences) > 1:
        return False
    start = starts.get(step.sequences[0])
    return start is not None and start <= step.positions[0]
