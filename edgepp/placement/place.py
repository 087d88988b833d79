"""Who runs which layers, as pure functions: ``place`` finds a plan, ``replace`` one that moves little."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from edgepp.layers import LayerRange
from edgepp.placement.search import Search
from edgepp.placement.shortage import check_gaps, check_pins, shortage
from edgepp.placement.types import (
    Links,
    PlacementRequest,
    Plan,
    StageHost,
    most_layers,
    plan_cost_s,
)

NEARLY = 1.15
"""A plan that costs at most so many times what the best one does is nearly as good."""

_NO_LINKS: Links = {}
_SUBSETS = 6
"""Up to so many stages that may stay, every subset of them is tried."""


def place(want: PlacementRequest, hosts: Sequence[StageHost], links: Links = _NO_LINKS, coordinator: str = "") -> Plan:
    """The best plan by the policy of ``want``, under every host's memory; pinned ranges are kept as they are.

    ``memory`` minimises the greatest layers / memory of a host, ``speed`` a token's seconds, ``throughput`` the
    slowest stage's seconds; equals are told apart by a token's seconds. Hosts of one node stay together unless pinned
    apart. Up to six hosts the plan is the best there is. ``coordinator`` is the node id of the coordinator's
    machine, which need not offer a host. The hosts' order in ``hosts`` does not matter.

    Raises:
        PlanError: pinned ranges contradict each other, or the hosts cannot hold the model; with what would help.
    """
    check_pins(want, hosts)
    search = Search(want, hosts, links, coordinator)
    check_gaps(search, hosts)
    plan = search.best()
    if plan is None:
        raise shortage(want, hosts, coordinator)
    return plan


def replace(want: PlacementRequest, hosts: Sequence[StageHost], links: Links, coordinator: str, present: Plan) -> Plan:
    """The plan after a change of members or of what is wanted: ``present`` while it is nearly as good as the best.

    Otherwise, of the plans that are nearly as good, the one for which the fewest layers are loaded anew: a stage whose
    range changes at all loads all of it, one that keeps it loads nothing. Beyond six stages that may stay, not every
    combination of them is tried.

    Raises:
        PlanError: as for ``place``.
    """

    def value(plan: Plan) -> float:
        return plan_cost_s(want, plan, hosts, links, coordinator)

    best = place(want, hosts, links, coordinator)
    bound = NEARLY * value(best)
    if _stands(want, hosts, present) and value(present) <= bound:
        return present
    staying = _staying(want, hosts, present)
    found, found_kept = best, _kept(best, staying)
    for subset in _subsets(want, hosts, staying):
        if sum(len(staying[host]) for host in subset) < found_kept:
            break
        pinned = [dataclasses.replace(h, pinned=staying[h.id]) if h.id in subset else h for h in hosts]
        plan = Search(want, pinned, links, coordinator).best()
        if plan is None or value(plan) > bound:
            continue
        if (-_kept(plan, staying), value(plan)) < (-found_kept, value(found)):
            found, found_kept = plan, _kept(plan, staying)
    return found


def _stands(want: PlacementRequest, hosts: Sequence[StageHost], plan: Plan) -> bool:
    """Whether a plan is still one: it tiles the model, its hosts are there, have the memory, and keep their pins."""
    by_id = {host.id: host for host in hosts}
    ends = [0, *(layers.stop for _, layers in plan.stages)]
    return (
        all(host in by_id and len(layers) <= most_layers(want, by_id[host]) for host, layers in plan.stages)
        and [layers.start for _, layers in plan.stages] == ends[:-1]
        and ends[-1] == want.size.layers
        and all(host.pinned is None or (host.id, host.pinned) in plan.stages for host in hosts)
    )


def _staying(want: PlacementRequest, hosts: Sequence[StageHost], present: Plan) -> dict[str, LayerRange]:
    """The ranges of ``present`` that their hosts may keep, in pipeline order."""
    free = {host.id: host for host in hosts if host.pinned is None}
    taken = [host.pinned for host in hosts if host.pinned is not None]
    return {
        host: layers
        for host, layers in present.stages
        if host in free
        and len(layers) <= most_layers(want, free[host])
        and layers.stop <= want.size.layers
        and all(layers.stop <= other.start or other.stop <= layers.start for other in taken)
    }


def _kept(plan: Plan, staying: Mapping[str, LayerRange]) -> int:
    """Layers that need not be loaded anew."""
    return sum(len(layers) for host, layers in plan.stages if staying.get(host) == layers)


def _subsets(want: PlacementRequest, hosts: Sequence[StageHost], staying: Mapping[str, LayerRange]) -> list[set[str]]:
    """Sets of hosts that may keep their ranges, those with the most layers first."""
    if len(staying) <= _SUBSETS:
        found = [set(some) for k in range(1, len(staying) + 1) for some in combinations(staying, k)]
    else:
        found = list(_likely_subsets(want, hosts, staying))
    return sorted(found, key=lambda subset: (-sum(len(staying[host]) for host in subset), sorted(subset)))


def _likely_subsets(
    want: PlacementRequest, hosts: Sequence[StageHost], staying: Mapping[str, LayerRange]
) -> Iterator[set[str]]:
    """All, and all but the 1, 2, 4 … that are the most loaded, the nearest to a hole, or both."""
    held = {layer for layers in staying.values() for layer in range(layers.start, layers.stop)}
    holes = [layer for layer in range(want.size.layers) if layer not in held]
    rates = {host.id: host.memory if want.policy == "memory" else host.decode_bytes_per_s(want.size) for host in hosts}
    loaded = sorted(staying, key=lambda host: (-len(staying[host]) / max(1, rates[host]), host))

    def distance(host: str) -> int:
        layers = staying[host]
        return min((max(layers.start - hole, hole - layers.stop + 1) for hole in holes), default=0)

    near = sorted(staying, key=lambda host: (distance(host), staying[host]))
    yield set(staying)
    dropped = 1
    while dropped < len(staying):
        for going in ({*loaded[:dropped]}, {*near[:dropped]}, {*loaded[:dropped], *near[:dropped]}):
            yield set(staying) - going
        dropped *= 2
