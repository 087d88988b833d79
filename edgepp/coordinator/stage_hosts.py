"""The stage hosts that members offer to a plan, and which of their pinned layer ranges count. Pure.

Pinned ranges count in the order in which their members came. A node is spare, and is told why, when its range overlaps
an earlier one or leaves no plan for the others. So no pinned range can prevent a plan of the other members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgepp.cluster.membership import Member
from edgepp.coordinator.rank_loads import nodes_of
from edgepp.coordinator.requested_groups import RequestedGroups
from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.placement.shortage import check_pins, fits
from edgepp.placement.values import Links, PlacementRequest, StageHost

_NO_LINKS: Links = {}
_MAX_SINGLE_EXCLUSIONS = 8
"""How many of the newest pinned nodes are tried to be left out one by one."""


class StageHosts:
    """The stage hosts of the members for one request, and the nodes whose pinned range does not count."""

    def __init__(self, request: PlacementRequest, coordinator: str, sums: Links = _NO_LINKS) -> None:
        """``sums`` has the measured cost of a sum over two nodes, by their ids; it may change later."""
        self._request = request
        self._coordinator = coordinator
        self._requested = RequestedGroups(request, sums)
        self._pins: dict[str, LayerRange] = {}
        """The pinned ranges of the present members by node id, in the order in which the members came."""
        self._unfit: dict[str, str] = {}
        """Reasons that follow from the members alone, by node id."""
        self._left_out: dict[str, str] = {}
        """Reasons of nodes that were left out of the last plan, by node id."""

    @property
    def refused(self) -> dict[str, str]:
        """Why a node's pinned range does not count, by node id."""
        return self._unfit | self._left_out

    @property
    def unfit(self) -> tuple[tuple[str, str], ...]:
        """The part of ``refused`` that follows from the members alone, and changes only with them."""
        return tuple(self._unfit.items())

    def hosts(self, present: Sequence[Member]) -> list[StageHost]:
        """The hosts of the ``present`` members that may run layers and whose pinned range is possible, by id.

        Drained members may not, nor those that joined to draft.
        """
        present = [member for member in present if not member.draining and not member.facts.draft]
        pins = {m.node: LayerRange(m.facts.start, m.facts.stop) for m in present if m.facts.stop > m.facts.start}
        unchanged = {node: pin for node, pin in self._pins.items() if pins.get(node) == pin}
        self._pins = unchanged | pins
        self._unfit.clear()
        order = list(self._pins)
        hosts: list[StageHost] = []
        ordered = sorted(present, key=lambda m: order.index(m.node) if m.node in pins else len(order))
        for member in ordered:
            if member.facts.tensor > 1:
                continue
            offered = self._offered(member, pins.get(member.node))
            if self._counts(offered[:1], hosts, [member.node]):
                hosts += offered[: member.facts.stage_slots]
        shared = {m.node: self._offered(m, pins.get(m.node))[0] for m in ordered if m.facts.tensor > 1}
        groups, waiting = self._requested.groups([m for m in ordered if m.node in shared], shared)
        self._unfit |= waiting
        for nodes, group in groups:
            if self._counts([group], hosts, nodes):
                hosts.append(group)
        return sorted(hosts, key=lambda host: host.id)

    def _counts(self, newcomers: Sequence[StageHost], hosts: Sequence[StageHost], nodes: Sequence[str]) -> bool:
        """Whether the pinned range of ``newcomers`` counts beside ``hosts``; else the ``nodes`` are told why not."""
        try:
            check_pins(self._request, newcomers)
            check_overlap(newcomers, hosts)
        except PlanError as error:
            self._unfit |= dict.fromkeys(nodes, f"{error}; {error.hint}")
            return False
        return True

    def possible(self, hosts: Sequence[StageHost], error: PlanError) -> Sequence[StageHost] | None:
        """``hosts`` without as many of the newest pinned nodes as necessary for a plan; None where no plan is possible.

        ``error`` says why there is no plan with all ``hosts``.
        """
        for excluded in self._exclusions({node for host in hosts for node in nodes_of(host.id)}):
            kept = [host for host in hosts if excluded.isdisjoint(nodes_of(host.id))]
            if fits(self._request, kept, self._coordinator):
                self._left_out = {
                    node: f"its layers {self._pins[node]} leave no plan: {error}; {error.hint}" for node in excluded
                }
                return kept
        return None

    def take_back(self) -> None:
        """Let the nodes that were left out of the last plan count again, for a new plan."""
        self._left_out = {}

    def _exclusions(self, nodes: set[str]) -> Iterator[frozenset[str]]:
        """Sets of pinned nodes to leave out: single newest ones, then the newest 2, 4, 8 … and all.

        They are few, since each one costs a search.
        """
        late = [node for node in reversed(self._pins) if node in nodes]
        yield from (frozenset({node}) for node in late[:_MAX_SINGLE_EXCLUSIONS])
        count = 2
        while late and count < 2 * len(late):
            yield frozenset(late[:count])
            count *= 2

    def _offered(self, member: Member, pinned: LayerRange | None) -> Sequence[StageHost]:
        """The hosts that a member offers, one per stage slot; for a member without slots, one host for its machine."""
        facts = member.facts
        machine = StageHost(
            id=member.node,
            node=member.node,
            memory_bytes=facts.memory_bytes,
            stream_bytes_per_s=max(1.0, facts.stream_bytes_per_s),
            flops_per_s=max(1.0, facts.flops_per_s),
            pinned=pinned if facts.stage_slots else None,
            coordinator=member.node == self._coordinator,
            name=facts.name,
            half_s=facts.half_ns / 1e9,
        )
        return machine.divided(facts.stage_slots) or (machine,)


def check_overlap(newcomers: Sequence[StageHost], taken: Sequence[StageHost]) -> None:
    """Check that no pinned range of ``newcomers`` overlaps one of ``taken``.

    Raises:
        PlanError: two ranges overlap; the message names both hosts and says which range counts.
    """
    for host in newcomers:
        for other in taken:
            pin, held = host.pinned, other.pinned
            if pin is not None and held is not None and pin.start < held.stop and held.start < pin.stop:
                overlap = LayerRange(max(pin.start, held.start), min(pin.stop, held.stop))
                raise PlanError(
                    f"layers {overlap} are pinned twice: {other} came first and keeps {held}, so {host}, which is to"
                    f" hold {pin}, is spare",
                    f"restart {host} with other --layers, or without",
                )
