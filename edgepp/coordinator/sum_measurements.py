"""Measured cost of a sum over each pair of members, on which it depends whether sharing layers pays.

A pair is measured by two processes of its own, one pair at a time, while no answer and no load is under way; again when
one of the two has other addresses, such as that of a cable. Belongs to the coordinator's thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from edgepp.backoff import doubled_s
from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.handover import RolloutOrder
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rank_loads import RankMeetings
from edgepp.placement.values import FLOAT32_BYTES, LinkSpeed, sums_s
from edgepp.wire.messages.rank_meetings import MeasureSum, RankListens, SumMeasured

MEASURE_S = 30.0
"""How long one measurement may take until it counts as failed."""
FIRST_RETRY_S, MAX_RETRY_S = 10.0, 600.0
"""The wait before a pair is measured again after a failure; each further failure doubles it."""
_MAX_MEMBERS = 8
"""Members of which every pair is measured; with more, the pairs of the fastest ones."""

_Pair = tuple[str, str]


@dataclass
class _Known:
    """Measurements of a pair of members that have the addresses ``hosts``."""

    hosts: tuple[str, str]
    cost: LinkSpeed | None = None
    """As it was measured last, also at former addresses, so that a plan never waits for it."""
    is_due: bool = True
    failures: int = 0
    retry_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class _UnderWay:
    group: int
    pair: _Pair
    hosts: tuple[str, str]
    width: int
    until_s: float


class SumMeasurements:
    """Orders measurements, takes their results, and gives the planner the costs of the pairs that are present."""

    def __init__(self, members: Membership, planner: Planner) -> None:
        self._members = members
        self._planner = planner
        self._meetings = RankMeetings()
        self._known: dict[_Pair, _Known] = {}
        self._under_way: _UnderWay | None = None
        self._told: list[RolloutOrder] = []
        self._asked = False

    def ask(self) -> dict[str, Any]:
        """Measure all pairs, although no plan needs them; returns how many are still to be measured."""
        self._asked = True
        return {"pairs": len(self._pairs()), "measured": len(self._planner.sums)}

    def step(self, now_s: float, *, idle: bool) -> list[RolloutOrder]:
        """The orders that are due. ``idle``: neither an answer nor a load is under way."""
        told, self._told = self._told, []
        running = self._under_way
        if running is not None and now_s > running.until_s:
            self._failed(running.pair, "it took too long", now_s)
        due = [pair for pair in self._pairs() if self._is_due(pair, now_s)] if self._is_wanted else []
        self._planner.measuring = self._under_way is not None or bool(due and idle)
        if self._under_way is None and due and idle:
            return [*told, *self._begin(due[0], now_s)]
        return told

    def listens(self, node: str, report: RankListens) -> bool:
        """Take the report of a rank that listens; False where it is not about a measurement."""
        running = self._under_way
        if running is None or report.group != running.group or node not in running.pair:
            return False
        members = {rank: self._members.get(one) for rank, one in enumerate(running.pair)}
        present = {rank: member for rank, member in members.items() if member is not None}
        self._told += self._meetings.listens(report, running.pair.index(node), present)
        return True

    def measured(self, node: str, report: SumMeasured, now_s: float) -> None:
        """Take a result, unless it is not about the measurement under way."""
        running = self._under_way
        if running is None or report.group != running.group or node != running.pair[0]:
            return
        if report.reason or report.rows < 2 or not report.row_ns:
            self._failed(running.pair, report.reason or "it measured nothing", now_s)
            return
        row_bytes = running.width * FLOAT32_BYTES
        extra_s = max(1, report.rows_ns - report.row_ns) / 1e9
        bytes_per_s = (report.rows - 1) * row_bytes / extra_s
        latency_s = max(0.0, report.row_ns / 1e9 - row_bytes / bytes_per_s)
        known = self._known[running.pair]
        known.cost, known.failures, known.reason = LinkSpeed(latency_s, bytes_per_s), 0, ""
        known.is_due = running.hosts != self._hosts(running.pair)
        self._under_way = None
        self._publish()

    def report(self) -> list[dict[str, Any]]:
        """For `edgepp status --json`: one object for each pair that was tried."""
        found = []
        for pair, known in self._known.items():
            members = [self._members.get(node) for node in pair]
            cost, size = known.cost, self._planner.request.size
            found.append(
                {
                    "node_ids": list(pair),
                    "nodes": [member.facts.name if member else "" for member in members],
                    "latency_s": cost.latency_s if cost else None,
                    "bytes_per_s": cost.bytes_per_s if cost else None,
                    "token_s": size.layers * sums_s(size, cost, 1, 2) if cost else None,
                    "problem": known.reason,
                }
            )
        return found

    @property
    def _is_wanted(self) -> bool:
        asks = any(member.facts.tensor > 1 for member in self._members.present)
        return self._asked or asks or self._planner.request.policy == "speed"

    def _pairs(self) -> list[_Pair]:
        """The pairs of members that may share layers, by id."""
        able = [member for member in self._members.present if _is_able(member)]
        able.sort(key=lambda member: (-member.facts.stream_bytes_per_s, member.node))
        return list(combinations(sorted(member.node for member in able[:_MAX_MEMBERS]), 2))

    def _is_due(self, pair: _Pair, now_s: float) -> bool:
        hosts = self._hosts(pair)
        known = self._known.get(pair)
        if known is None or known.hosts != hosts:
            self._known[pair] = known = _Known(hosts, known.cost if known else None)
        return known.is_due and now_s >= known.retry_s

    def _hosts(self, pair: _Pair) -> tuple[str, str]:
        one, other = (self._members.get(node) for node in pair)
        return (_addresses(one) if one else "", _addresses(other) if other else "")

    def _begin(self, pair: _Pair, now_s: float) -> list[RolloutOrder]:
        width = self._planner.request.size.hidden
        self._under_way = running = _UnderWay(
            1 + secrets.randbits(61), pair, self._hosts(pair), width, now_s + MEASURE_S
        )
        self._meetings.clear()
        return [(node, MeasureSum(running.group, rank, width)) for rank, node in enumerate(pair)]

    def _failed(self, pair: _Pair, reason: str, now_s: float) -> None:
        known = self._known[pair]
        known.retry_s = now_s + doubled_s(FIRST_RETRY_S, known.failures, MAX_RETRY_S)
        known.failures, known.reason = known.failures + 1, reason
        self._under_way = None

    def _publish(self) -> None:
        self._planner.sums.clear()
        self._planner.sums.update({pair: known.cost for pair, known in self._known.items() if known.cost is not None})


def _addresses(member: Member) -> str:
    """All addresses of a member, in an order that stays the same whatever address its messages come from."""
    return ",".join(sorted({member.host, *filter(None, member.facts.addresses.split(","))}))


def _is_able(member: Member) -> bool:
    facts = member.facts
    is_here = member.phase in (MemberPhase.JOINED, MemberPhase.READY)
    return is_here and facts.stage_slots > 0 and not facts.draft and not member.draining


Ask = Callable[[], dict[str, Any]]
"""``SumMeasurements.ask``."""
