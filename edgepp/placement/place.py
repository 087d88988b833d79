"""Placement as pure functions: ``place`` finds the best plan, ``replace`` a good plan that moves few layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from edgepp.layer_range import LayerRange
from edgepp.placement.costs import max_layers, plan_cost_s
from edgepp.placement.search import Search
from edgepp.placement.shortage import check_gaps, check_pins, shortage
from edgepp.placement.values import Links, PlacementRequest, Plan, StageHost

_NEARLY_AS_GOOD = 1.15
"""Greatest cost of a plan, as a multiple of the best plan's, for which it counts as nearly as good."""

_NO_LINKS: Links = {}
_MAX_STAGES_FOR_ALL_SUBSETS = 6
"""Greatest number of keepable stages for which every subset of them is tried."""


def place(
    request: PlacementRequest, hosts: Sequence[StageHost], links: Links = _NO_LINKS, coordinator: str = ""
) -> Plan:
    """The best plan by the policy of ``request`` within the memory of every host; pinned ranges stay as they are.

    The policy ``memory`` minimises the greatest layers / memory of a host, ``speed`` the seconds per token,
    ``throughput`` the seconds of the slowest stage; the seconds per token decide between equals. Hosts of one node stay
    together unless they are pinned apart. For up to six hosts no plan is better. ``coordinator`` is the node id of the
    coordinator's machine, which need not offer a host. The order of ``hosts`` does not matter.

    Raises:
        PlanError: pinned ranges contradict each other, or the hosts cannot hold the model; the hint says what would
            help.
    """
    check_pins(request, hosts)
    search = Search(request, hosts, links, coordinator)
    check_gaps(search, hosts)
    plan = search.best()
    if plan is None:
        raise shortage(request, hosts, coordinator)
    return plan


def replace(
    request: PlacementRequest, hosts: Sequence[StageHost], links: Links, coordinator: str, current: Plan
) -> Plan:
    """The plan after a change of members or of the request: ``current`` while it is nearly as good as the best plan.

    Otherwise the result is, among the plans that are nearly as good, the one that loads the fewest layers: a stage with
    a changed range loads all layers of it, a stage with the same range loads nothing. With more than six stages that
    may keep their ranges, not every combination is tried.

    Raises:
        PlanError: pinned ranges contradict each other, or the hosts cannot hold the model; the hint says what would
            help.
    """

    def cost(plan: Plan) -> float:
        return plan_cost_s(request, plan, hosts, links, coordinator)

    best = place(request, hosts, links, coordinator)
    bound = _NEARLY_AS_GOOD * cost(best)
    if _is_valid(request, hosts, current) and cost(current) <= bound:
        return current
    keepable = _keepable(request, hosts, current)
    found, found_kept = best, _kept_layers(best, keepable)
    for subset in _subsets(request, hosts, keepable):
        if sum(len(keepable[host]) for host in subset) < found_kept:
            break
        pinned = [dataclasses.replace(h, pinned=keepable[h.id]) if h.id in subset else h for h in hosts]
        plan = Search(request, pinned, links, coordinator).best()
        if plan is None or cost(plan) > bound:
            continue
        if (-_kept_layers(plan, keepable), cost(plan)) < (-found_kept, cost(found)):
            found, found_kept = plan, _kept_layers(plan, keepable)
    return found


def _is_valid(request: PlacementRequest, hosts: Sequence[StageHost], plan: Plan) -> bool:
    """Whether a plan tiles the model, and its hosts are present, have the memory and keep their pinned ranges."""
    by_id = {host.id: host for host in hosts}
    ends = [0, *(layers.stop for _, layers in plan.stages)]
    return (
        all(host in by_id and len(layers) <= max_layers(request, by_id[host]) for host, layers in plan.stages)
        and [layers.start for _, layers in plan.stages] == ends[:-1]
        and ends[-1] == request.size.layers
        and all(host.pinned is None or (host.id, host.pinned) in plan.stages for host in hosts)
    )


def _keepable(request: PlacementRequest, hosts: Sequence[StageHost], current: Plan) -> dict[str, LayerRange]:
    """Ranges of ``current`` that their hosts may keep, by host id in pipeline order."""
    free = {host.id: host for host in hosts if host.pinned is None}
    taken = [host.pinned for host in hosts if host.pinned is not None]
    return {
        host: layers
        for host, layers in current.stages
        if host in free
        and len(layers) <= max_layers(request, free[host])
        and layers.stop <= request.size.layers
        and all(layers.stop <= other.start or other.stop <= layers.start for other in taken)
    }


def _kept_layers(plan: Plan, keepable: Mapping[str, LayerRange]) -> int:
    """Number of layers in ``plan`` that stay loaded."""
    return sum(len(layers) for host, layers in plan.stages if keepable.get(host) == layers)


def _subsets(
    request: PlacementRequest, hosts: Sequence[StageHost], keepable: Mapping[str, LayerRange]
) -> list[set[str]]:
    """Sets of hosts that may keep their ranges, the sets with the most layers first."""
    if len(keepable) <= _MAX_STAGES_FOR_ALL_SUBSETS:
        found = [set(some) for k in range(1, len(keepable) + 1) for some in combinations(keepable, k)]
    else:
        found = list(_likely_subsets(request, hosts, keepable))
    return sorted(found, key=lambda subset: (-sum(len(keepable[host]) for host in subset), sorted(subset)))


def _likely_subsets(
    request: PlacementRequest, hosts: Sequence[StageHost], keepable: Mapping[str, LayerRange]
) -> Iterator[set[str]]:
    """All hosts, and all but the 1, 2, 4 … hosts that are the most loaded, the nearest to a hole, or both."""
    held = {layer for layers in keepable.values() for layer in range(layers.start, layers.stop)}
    holes = [layer for layer in range(request.size.layers) if layer not in held]
    rates = {
        host.id: host.memory_bytes if request.policy == "memory" else host.decode_bytes_per_s(request.size)
        for host in hosts
    }
    loaded = sorted(keepable, key=lambda host: (-len(keepable[host]) / max(1, rates[host]), host))

    def distance(host: str) -> int:
        layers = keepable[host]
        return min((max(layers.start - hole, hole - layers.stop + 1) for hole in holes), default=0)

    near = sorted(keepable, key=lambda host: (distance(host), keepable[host]))
    yield set(keepable)
    dropped = 1
    while dropped < len(keepable):
        for leaving in ({*loaded[:dropped]}, {*near[:dropped]}, {*loaded[:dropped], *near[:dropped]}):
            yield set(keepable) - leaving
        dropped *= 2
