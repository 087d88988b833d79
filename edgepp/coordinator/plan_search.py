"""The search for a plan: with as many of the pinned nodes as possible, and over no banned link. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from edgepp.coordinator.link_bans import NodeLink, links_of, without
from edgepp.coordinator.rank_loads import nodes_of, part_ids
from edgepp.coordinator.stage_hosts import StageHosts
from edgepp.errors import PlanError
from edgepp.placement import place as placement
from edgepp.placement.group_search import with_groups
from edgepp.placement.values import LinkSpeed, PlacementRequest, Plan, StageHost


@dataclass(frozen=True)
class PlanSearch:
    """What a plan depends on beside the hosts that it may use."""

    request: PlacementRequest
    links: Mapping[NodeLink, LinkSpeed]
    sums: Mapping[NodeLink, LinkSpeed]
    coordinator: str
    """Node id of the coordinator's machine."""
    stage_hosts: StageHosts
    """Takes the nodes that are refused since their pins do not fit."""
    current: Plan | None
    """The plan in force."""
    banned: tuple[NodeLink, ...] = ()
    """Links over which no frame gets."""

    def best(self, hosts: Sequence[StageHost]) -> Plan:
        """A plan that sends over no banned link, where necessary without the node at one end of it, if there is one.

        Else a plan as if no link were banned.

        Raises:
            PlanError: the hosts cannot hold the model.
        """
        plan = self._place(hosts)
        if not self.crosses_banned(plan):
            return plan
        for node in dict.fromkeys(node for link in self.banned for node in reversed(link)):
            self.stage_hosts.take_back()
            with suppress(PlanError):
                other = self._place([host for host in hosts if node not in nodes_of(host.id)])
                if not self.crosses_banned(other):
                    return other
        self.stage_hosts.take_back()
        return replace(self, banned=())._place(hosts)

    def crosses_banned(self, plan: Plan | None) -> bool:
        """Whether a plan sends over a banned link."""
        return plan is not None and not set(self.banned).isdisjoint(links_of(plan))

    def _place(self, hosts: Sequence[StageHost]) -> Plan:
        """A plan with as many of the pinned nodes as possible.

        Raises:
            PlanError: the hosts cannot hold the model.
        """
        try:
            return self._place_all(hosts)
        except PlanError as error:
            possible = self.stage_hosts.possible(hosts, error)
            if possible is None:
                raise
            return self._place_all(possible)

    def _place_all(self, hosts: Sequence[StageHost]) -> Plan:
        ids = {host.id for host in hosts}
        groups = [frozenset(part_ids(host)) for host, _ in self.current.stages] if self.current else []
        present = frozenset(group for group in groups if len(group) > 1 and group <= ids)
        links = without(self.links, self.banned)
        hosts = with_groups(self.request, hosts, links, self.sums, self.coordinator, present)
        if self.current is None or self.crosses_banned(self.current):
            return placement.place(self.request, hosts, links, self.coordinator)
        return placement.replace(self.request, hosts, links, self.coordinator, self.current)
