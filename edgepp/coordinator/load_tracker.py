"""The loads that stage slots were ordered to do: how far each one is, and when it is ordered again. Pure.

A stage host is identified by ``node/slot``. A slot that fails is ordered again after waits that grow with each failure
(``FailureBackoff``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgepp.cluster.membership import Membership
from edgepp.coordinator.failure_backoff import FailureBackoff
from edgepp.wire.messages.nodes import Loading

REORDER_S = 5.0
"""A load without news for this time is ordered again."""
STALLED_S = 120.0
"""A load without progress for this time has failed."""


@dataclass
class SlotLoad:
    """State of the load of one slot."""

    ordered_s: float
    """When the load counts as ordered last: later where progress was reported or a retry has to wait."""
    progress_s: float
    """When the load made progress last."""
    last_progress: tuple[str, int] = ("", -1)
    """The last report: what is being done, and the number of bytes done."""
    waits: bool = False
    """Whether it waits for other ranks, which are watched themselves."""
    under_way: bool = True
    """Whether the load was ordered, and has neither finished nor failed since."""


class LoadTracker:
    """The loads of the plan in force, by host id, and the failures of all hosts."""

    def __init__(self) -> None:
        self.backoff = FailureBackoff()
        self._loads: dict[str, SlotLoad] = {}
        self.last_failure = ""
        """Which load failed last, and why; empty where none has."""

    def get(self, host: str) -> SlotLoad | None:
        """The load of a host; None where the present plan has ordered none."""
        return self._loads.get(host)

    def clear(self) -> None:
        """Forget all loads, for a new plan. Failures are kept."""
        self._loads.clear()

    def order(self, host: str, now_s: float) -> None:
        """Note that a load is ordered now."""
        load = self._loads.setdefault(host, SlotLoad(now_s, now_s))
        if not load.under_way:
            load.under_way, load.waits, load.progress_s, load.last_progress = True, False, now_s, ("", -1)
        load.ordered_s = now_s

    def is_due(self, host: str, now_s: float) -> bool:
        """Whether a load is to be ordered: for the first time, because a message may be lost, or after a failure."""
        load = self._loads.get(host)
        return load is None or now_s - load.ordered_s >= REORDER_S

    def is_stalled(self, host: str, now_s: float) -> bool:
        """Whether a load that is under way has made no progress for ``STALLED_S`` seconds."""
        load = self._loads.get(host)
        return load is not None and load.under_way and not load.waits and now_s - load.progress_s >= STALLED_S

    def progress(self, host: str, report: Loading, now_s: float) -> None:
        """Note a progress report: the load need not be ordered again for now."""
        load = self._loads[host]
        load.ordered_s = now_s
        if (report.activity, report.done_bytes) != load.last_progress:
            load.last_progress, load.progress_s = (report.activity, report.done_bytes), now_s
        load.waits = False

    def waits(self, host: str, now_s: float) -> None:
        """Note that a load waits for the other ranks of its stage; their progress counts for it too."""
        if (load := self._loads.get(host)) is not None:
            load.waits, load.ordered_s = True, now_s

    def loaded(self, host: str, now_s: float) -> None:
        """Note that a load has finished."""
        self._loads[host].under_way = False
        self.backoff.loaded(host, now_s)

    def failed(self, host: str, reason: str, now_s: float, *, final: bool = False) -> None:
        """Note that a load failed, or that its stage ended; ``final`` bans the host at once."""
        load = self._loads[host]
        load.under_way = False
        self.last_failure = reason
        load.ordered_s = self.backoff.failed(host, reason, now_s, final=final) - REORDER_S

    def note_lost(self, hosts: Iterable[str], members: Membership, now_s: float) -> None:
        """Count as a failure of each of the plan's ``hosts`` that its node is lost: some fail whenever they compute."""
        for host in hosts:
            member = members.get(split_host_id(host)[0])
            if member is not None and member.lost:
                self.backoff.failed(host, f"its node {member.gone_reason}", now_s, lasting=True)

    def restarting(self, host: str, now_s: float) -> None:
        """Note that a stage ended and its node starts it again by itself."""
        load = self._loads[host]
        load.under_way, load.waits, load.last_progress = True, False, ("", -1)
        load.ordered_s = load.progress_s = now_s

    def remind(self, node: str, *, restarted: bool) -> None:
        """Order the node's loads again, since it enrolled again and may have lost the orders.

        A ``restarted`` node is free of its earlier failures, except that the node itself was lost.
        """
        for host, load in self._loads.items():
            if split_host_id(host)[0] == node and (restarted or load.under_way):
                load.ordered_s = -REORDER_S
        if restarted:
            self.backoff.forget(node)


def host_id(node: str, slot: int) -> str:
    """The id of a stage host."""
    return f"{node}/{slot}"


def split_host_id(host: str) -> tuple[str, int]:
    """The node and the slot of a stage host."""
    node, _, slot = host.partition("/")
    return node, int(slot)
