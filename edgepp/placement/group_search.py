"""Search for groups of hosts that make a plan faster, or for one group of a given size. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from edgepp.errors import PlanError
from edgepp.placement.costs import plan_cost_s
from edgepp.placement.groups import make_group, sum_cost
from edgepp.placement.place import place
from edgepp.placement.values import Links, PlacementRequest, Plan, StageHost

GROUP_GAIN = 1.1
"""How many times as fast a plan with one more group must be predicted to be."""
KEPT_GAIN = 1.15
"""How many times as fast another grouping must be than the present one, whose loaded weights it would give up."""
MAX_GROUPED = 4
"""Greatest number of ranks that are tried without being asked for."""
_MAX_CANDIDATES = 6
"""Greatest number of hosts, the fastest ones, of which groups are tried."""


def with_groups(
    request: PlacementRequest,
    hosts: Sequence[StageHost],
    links: Links,
    sums: Links,
    coordinator: str,
    current: frozenset[frozenset[str]] = frozenset(),
) -> tuple[StageHost, ...]:
    """``hosts`` with groups in place of their members, as far as the plan becomes faster by ``GROUP_GAIN`` for each.

    Only by the policy ``speed``, and only hosts between which sums were measured. ``current`` are the groups of the
    plan in force, which stay unless another grouping is ``KEPT_GAIN`` times as fast.
    """
    chosen = tuple(hosts)
    if request.policy != "speed" or request.size.shared is None:
        return chosen
    best_s = _cost_s(request, chosen, links, coordinator)
    while True:
        found = [
            (cost_s, group.id, grouping)
            for group in _candidates(request, chosen, sums)
            if (cost_s := _cost_s(request, grouping := _replaced(chosen, group), links, coordinator)) is not None
        ]
        if not found:
            break
        cost_s, _, grouping = min(found, key=lambda one: one[:2])
        if best_s is not None and cost_s * GROUP_GAIN > best_s:
            break
        chosen, best_s = grouping, cost_s
    return _unless_current(request, tuple(hosts), chosen, links, sums, coordinator, current)


def _unless_current(
    request: PlacementRequest,
    hosts: tuple[StageHost, ...],
    chosen: tuple[StageHost, ...],
    links: Links,
    sums: Links,
    coordinator: str,
    current: frozenset[frozenset[str]],
) -> tuple[StageHost, ...]:
    """``chosen``, or the groups of the plan in force where they are nearly as fast."""
    kept = hosts
    by_id = {host.id: host for host in hosts}
    for members in current:
        group = _group_of(request, [by_id[host] for host in members if host in by_id], len(members), sums)
        if group is None:
            return chosen
        kept = _replaced(kept, group)
    if not current or kept == chosen:
        return chosen
    kept_s, chosen_s = (_cost_s(request, one, links, coordinator) for one in (kept, chosen))
    if kept_s is None or (chosen_s is not None and chosen_s * KEPT_GAIN < kept_s):
        return chosen
    return kept


def _candidates(request: PlacementRequest, hosts: Sequence[StageHost], sums: Links) -> Iterator[StageHost]:
    """Groups of the fastest hosts that are on different nodes, not pinned, and in no group yet."""
    free = [host for host in hosts if host.pinned is None and not host.groups_with]
    free.sort(key=lambda host: (-host.decode_bytes_per_s(request.size), host.id))
    for count in range(2, MAX_GROUPED + 1):
        for members in combinations(free[:_MAX_CANDIDATES], count):
            if len({host.node for host in members}) == count:
                group = _group_of(request, members, count, sums)
                if group is not None:
                    yield group


def _group_of(request: PlacementRequest, members: Sequence[StageHost], count: int, sums: Links) -> StageHost | None:
    """The group of ``count`` members; None where one is missing, sums were not measured, or layers cannot be shared."""
    if len(members) < count or sum_cost(sums, [host.node for host in members]) is None:
        return None
    try:
        return make_group(request, members, sums)
    except PlanError:
        return None


def plans_with_group(
    request: PlacementRequest, hosts: Sequence[StageHost], links: Links, sums: Links, coordinator: str, count: int
) -> Iterator[tuple[Plan, tuple[StageHost, ...]]]:
    """The best plan over ``hosts`` with one group of ``count`` of them, and those hosts, for each possible group.

    Raises:
        PlanError: none is possible.
    """
    free = [host for host in hosts if not host.groups_with]
    refused: PlanError | None = None
    found = False
    for members in combinations(free, count):
        if len({host.node for host in members}) < count or len({host.pinned for host in members}) > 1:
            continue
        try:
            grouped = _replaced(hosts, make_group(request, members, sums))
            plan = place(request, grouped, links, coordinator)
        except PlanError as error:
            refused = refused or error
            continue
        found = True
        yield plan, grouped
    if not found:
        raise refused or PlanError(f"there are not {count} machines to share a stage", f"describe {count} machines")


def _replaced(hosts: Sequence[StageHost], group: StageHost) -> tuple[StageHost, ...]:
    return (*(host for host in hosts if host.id not in group.groups_with), group)


def _cost_s(request: PlacementRequest, hosts: Sequence[StageHost], links: Links, coordinator: str) -> float | None:
    """Seconds per token of the best plan over ``hosts``; None where they cannot hold the model."""
    if not hosts:
        return None
    try:
        return plan_cost_s(request, place(request, hosts, links, coordinator), hosts, links, coordinator)
    except PlanError:
        return None
