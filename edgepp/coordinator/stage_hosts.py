"""The hosts that members offer to a plan, and which of their pinned layer ranges count. Pure: no socket, no clock.

A pinned range counts in the order in which the members came: one that contradicts an earlier range, or that leaves no
plan for the others, makes its node spare, and the node is told why. So no pin keeps the other members from a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgepp.cluster.membership import Member
from edgepp.errors import PlanError
from edgepp.layers import LayerRange
from edgepp.placement.shortage import check_pins, fits
from edgepp.placement.types import PlacementRequest, StageHost

_ALONE = 8
"""Pinned nodes, the last that came first, of which each is left out by itself to see whether that helps."""


class StageHosts:
    """The members' hosts for one model, and the nodes whose pinned range is not taken."""

    def __init__(self, want: PlacementRequest, coordinator: str) -> None:
        self._want = want
        self._coordinator = coordinator
        self._pins: dict[str, LayerRange] = {}
        """Pinned ranges of the members that are here by node id, in the order in which they came."""
        self._unfit: dict[str, str] = {}
        self._idle: dict[str, str] = {}

    @property
    def refused(self) -> dict[str, str]:
        """Why a node's pinned range is not taken, by node id."""
        return self._unfit | self._idle

    @property
    def unfit(self) -> tuple[tuple[str, str], ...]:
        """The part of ``refused`` that follows from the members alone: it changes only when they do."""
        return tuple(self._unfit.items())

    def hosts(self, present: Sequence[Member]) -> list[StageHost]:
        """The hosts of the members whose pinned range can be."""
        pins = {m.node: LayerRange(m.facts.start, m.facts.stop) for m in present if m.facts.stop > m.facts.start}
        here = {node: pin for node, pin in self._pins.items() if pins.get(node) == pin}
        self._pins = here | pins
        self._unfit.clear()
        order = list(self._pins)
        hosts: list[StageHost] = []
        for member in sorted(present, key=lambda m: order.index(m.node) if m.node in pins else len(order)):
            offered = self._offered(member, pins.get(member.node))
            try:
                check_pins(self._want, offered[:1])
                check_overlap(offered[:1], hosts)
            except PlanError as error:
                self._unfit[member.node] = f"{error}; {error.hint}"
                continue
            hosts += offered[: member.facts.stage_slots]
        return sorted(hosts, key=lambda host: host.id)

    def possible(self, hosts: Sequence[StageHost], error: PlanError) -> Sequence[StageHost] | None:
        """``hosts`` without pinned nodes, the last that came first, so that a plan is possible; None where none is.

        ``error`` says why there is no plan with all of them.
        """
        for out in self._left_out({host.node for host in hosts}):
            kept = [host for host in hosts if host.node not in out]
            if fits(self._want, kept, self._coordinator):
                self._idle = {
                    node: f"its layers {self._pins[node]} leave no plan: {error}; {error.hint}" for node in out
                }
                return kept
        return None

    def take_back(self) -> None:
        """Let every pinned range count again that the others leave room for: a new plan is to be made."""
        self._idle = {}

    def _left_out(self, nodes: set[str]) -> Iterator[frozenset[str]]:
        """One of the last ``_ALONE`` pinned nodes, then the last 2, 4, 8 … and all: few, for each is a search."""
        late = [node for node in reversed(self._pins) if node in nodes]
        yield from (frozenset({node}) for node in late[:_ALONE])
        count = 2
        while late and count < 2 * len(late):
            yield frozenset(late[:count])
            count *= 2

    def _offered(self, member: Member, pinned: LayerRange | None) -> Sequence[StageHost]:
        """The stage processes that a member offers; for one that offers none, what it would be as a whole."""
        facts = member.facts
        whole = StageHost(
            id=member.node,
            node=member.node,
            memory_bytes=facts.memory_bytes,
            stream_bytes_per_s=max(1.0, facts.stream_bytes_per_s),
            flops_per_s=max(1.0, facts.flops_per_s),
            pinned=pinned if facts.stage_slots else None,
            coordinator=member.node == self._coordinator,
            name=facts.name,
        )
        return whole.divided(facts.stage_slots) or (whole,)


def check_overlap(newcomers: Sequence[StageHost], taken: Sequence[StageHost]) -> None:
    """Check that no pinned range of ``newcomers`` overlaps one of ``taken``.

    Raises:
        PlanError: the first overlap, and whose range counts.
    """
    for host in newcomers:
        for other in taken:
            pin, held = host.pinned, other.pinned
            if pin is not None and held is not None and pin.start < held.stop and held.start < pin.stop:
                twice = LayerRange(max(pin.start, held.start), min(pin.stop, held.stop))
                raise PlanError(
                    f"layers {twice} are pinned twice: {other} came first and keeps {held}, so {host}, which is to"
                    f" hold {pin}, is spare",
                    f"restart {host} with other --layers, or without",
                )
