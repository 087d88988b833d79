"""When a new plan is due: once members have been quiet for a moment, and no answer is under way. Pure: times come in.

Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepp.cluster.membership import GONE_S

QUIET_S = 1.0
"""How long members must be unchanged before a plan is made."""
RESTLESS_S = 5.0
"""How long after the first change a plan is made for members that never stop changing."""
START_WAIT_S = 4.0
"""How long after its start a coordinator waits for the nodes that it expects."""
RETURN_WAIT_S = GONE_S
"""The same where a node is there that holds layers of an earlier start.

The others are then likely to hold theirs and to be late, and a plan without them would move layers for nothing.
"""
MAX_BUSY_S = 30.0
"""How long a better plan waits for answers to end."""


@dataclass
class PlanTiming:
    """The hosts that a plan depends on, the time of their last change, and the hosts of the last plan."""

    _began_s: float | None = None
    _seen: tuple[object, ...] = ()
    """The hosts of now: what a plan depends on."""
    _planned: tuple[object, ...] | None = None
    """The hosts for which the last plan was made; None before the first plan."""
    _changed_s: float = 0.0
    _restless_s: float | None = None
    """The first change for which no plan was made yet; None where there is none."""

    @property
    def settled(self) -> bool:
        """Whether a plan was made for the hosts of now."""
        return self._planned == self._seen

    def note(self, hosts: tuple[object, ...], now_s: float) -> None:
        """Note the ``hosts`` of now."""
        if self._began_s is None:
            self._began_s = self._changed_s = now_s
        if hosts != self._seen:
            self._seen, self._changed_s = hosts, now_s
            self._restless_s = now_s if self._restless_s is None else self._restless_s
        if self.settled:
            self._restless_s = None

    def planned(self) -> None:
        """Note that a plan is made for the hosts of now."""
        self._planned, self._restless_s = self._seen, None

    def plan_anew(self) -> None:
        """Forget for what the last plan was made, so that the hosts of now count as changed."""
        self._planned = None

    def is_time_for_first(self, now_s: float, *, all_present: bool, goes_on: bool) -> bool:
        """Whether to make a plan where none is in force.

        ``all_present``: no expected node is missing; ``goes_on``: a node holds layers of an earlier start.
        """
        waited_s = now_s - (now_s if self._began_s is None else self._began_s)
        wait_s = RETURN_WAIT_S if goes_on else START_WAIT_S
        return self._is_quiet(now_s) and (all_present or waited_s >= wait_s)

    def is_time_for_better(self, now_s: float, *, idle: bool) -> bool:
        """Whether to replace the plan in force; ``idle``: nothing would be disturbed."""
        return self._is_quiet(now_s) and (idle or self._waiting_s(now_s) >= MAX_BUSY_S)

    def _is_quiet(self, now_s: float) -> bool:
        return now_s - self._changed_s >= QUIET_S or self._waiting_s(now_s) >= RESTLESS_S

    def _waiting_s(self, now_s: float) -> float:
        """Seconds since the first change for which no plan was made."""
        return now_s - (self._changed_s if self._restless_s is None else self._restless_s)
