"""How far the clock of another process is ahead of this one's, from exchanges of four times, as in NTP. Pure.

An exchange: this side sends at t1, the other side receives at t2 and answers at t3, this side receives at t4. The
other clock is ahead by ((t2 - t1) + (t3 - t4)) / 2, wrong by at most half the time on the way, (t4 - t1) - (t3 - t2),
whichever way took it. So the exchange with the shortest way tells most; but clocks drift apart, so an older one counts
for less by what the clocks may have drifted since.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MAX_DRIFT = 100e-6
"""Seconds per second by which two clocks drift apart at most: those of computers stay within 50 millionths each."""
_INTERVAL_US = 5_000_000
"""Of the exchanges within this time, only the best is kept, except of the newest ``_MAX_RECENT``."""
_MAX_RECENT = 16
_MAX_KEPT = 120
"""Intervals that are kept: ten minutes."""


@dataclass(frozen=True)
class Exchange:
    """What one exchange told."""

    at_us: int
    """When it was, by this side's clock."""
    offset_us: float
    """Microseconds by which the other clock was ahead."""
    error_us: float
    """Half the time on the way."""


@dataclass(frozen=True)
class ClockEstimate:
    """How far the other clock is ahead at one time."""

    offset_us: float
    error_us: float
    """The estimate is wrong by at most this: half the shortest time on the way, and drift."""
    drift: float
    """Seconds per second by which the other clock is fast."""

    @property
    def is_known(self) -> bool:
        """Whether there has been an exchange."""
        return self.error_us < float("inf")


SAME_CLOCK = ClockEstimate(0.0, 0.0, 0.0)
"""Of a part of this process."""


class ClockOffset:
    """All that is known of one other clock. One thread adds exchanges; any thread may ask."""

    def __init__(self) -> None:
        self._recent: deque[Exchange] = deque(maxlen=_MAX_RECENT)
        self._kept: deque[Exchange] = deque(maxlen=_MAX_KEPT)
        """The best exchange of each interval, oldest first."""
        self._fit: tuple[float, float] | None = None
        """Drift by the exchanges so far, and by how much it may be wrong; None where it has to be computed."""

    def add(self, sent_us: int, received_us: int, answered_us: int, back_us: int) -> None:
        """Add an exchange: the first and last time by this side's clock, the others by the other side's.

        Times that no exchange can have, such as an answer before the question, are ignored.
        """
        way_us = (back_us - sent_us) - (answered_us - received_us)
        if way_us < 0 or answered_us < received_us:
            return
        offset_us = ((received_us - sent_us) + (answered_us - back_us)) / 2
        one = Exchange(back_us, offset_us, way_us / 2)
        self._recent.append(one)
        self._fit = None
        if self._kept and one.at_us // _INTERVAL_US == self._kept[-1].at_us // _INTERVAL_US:
            if one.error_us < self._kept[-1].error_us:
                self._kept[-1] = one
        else:
            self._kept.append(one)

    def at(self, at_us: int) -> ClockEstimate:
        """How far the other clock was ahead at ``at_us`` by this side's clock; with an infinite error if unknown."""
        known = [*self._kept, *self._recent]
        if not known:
            return ClockEstimate(0.0, float("inf"), 0.0)
        fit = self._fit
        if fit is None:
            self._fit = fit = self._drift(known)
        drift, unsure = fit

        def error_us(one: Exchange) -> float:
            return one.error_us + unsure * abs(at_us - one.at_us)

        best = min(known, key=error_us)
        return ClockEstimate(best.offset_us + drift * (at_us - best.at_us), error_us(best), drift)

    @staticmethod
    def _drift(known: list[Exchange]) -> tuple[float, float]:
        """Drift, and by how much it may be wrong, from the two exchanges that tell it best."""
        best = min(known, key=lambda one: one.error_us)
        drift, unsure = 0.0, MAX_DRIFT
        for one in known:
            apart_us = one.at_us - best.at_us
            if apart_us and (found := (one.error_us + best.error_us) / abs(apart_us)) < unsure:
                drift, unsure = (one.offset_us - best.offset_us) / apart_us, found
        return drift, unsure
