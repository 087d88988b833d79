"""Search for the best plan.

Free hosts fill the gaps between pinned ranges. For one assignment of free hosts to gaps, the number of layers per host
(``layer_shares``) and the order of hosts (``stage_order``) do not depend on each other, so each is found alone. For few
hosts every assignment is tried; for many hosts likely assignments, then single changes of the best one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from edgepp.layer_range import LayerRange
from edgepp.placement.costs import hop_s, max_layers
from edgepp.placement.layer_shares import fill_shares, layers_within, level_shares
from edgepp.placement.stage_order import cheapest_order
from edgepp.placement.values import Links, PlacementRequest, Plan, StageHost

_MAX_EXHAUSTIVE = 256
"""Greatest number of assignments that are all tried: 8 hosts without pinned ranges, or any 6 hosts with them."""
_MAX_EFFORT = 4000
"""Greatest sum, over the single changes that are tried, of the hosts in use."""
_TICKS_PER_S = 1e12
"""Costs are added in whole picoseconds, so that equal plans compare equal whatever the order of the sum."""

_UNUSED = -1
Assignment = tuple[int, ...]
"""The gap of each free host, or ``_UNUSED``."""
Cost = tuple[float, int]
"""The quantity that the policy minimises, then the ticks per token."""
Share = list[tuple[StageHost, int]]
"""Hosts of one gap, with their numbers of layers."""


@dataclass(frozen=True)
class Gap:
    """Layers ``[start, stop)`` that no pinned host holds, between two nodes."""

    start: int
    stop: int
    before: str
    after: str

    def __len__(self) -> int:
        return self.stop - self.start


class Search:
    """One search. The order of ``hosts`` does not matter; their pinned ranges must not overlap."""

    def __init__(self, request: PlacementRequest, hosts: Sequence[StageHost], links: Links, coordinator: str) -> None:
        self._request, self._links, self._coordinator = request, links, coordinator
        ordered = sorted(hosts, key=lambda host: (host.node != coordinator, host.node, host.id))
        self.pinned = sorted(((h, h.pinned) for h in ordered if h.pinned is not None), key=lambda pair: pair[1])
        self.free = [host for host in ordered if host.pinned is None]
        self.gaps = list(self._find_gaps())
        self.caps = {host.id: max_layers(request, host) for host in ordered}
        self._ticks = {
            host.id: round(_TICKS_PER_S * request.size.layer_bytes / host.decode_bytes_per_s(request.size))
            for host in ordered
        }
        self._hops: dict[tuple[str, str], int] = {}
        self._routes: dict[tuple[str, str, tuple[str, ...], bool], tuple[int, tuple[str, ...]]] = {}
        self._best: tuple[Cost, Plan, Assignment] | None = None

    def best(self) -> Plan | None:
        """The best plan found; None if no assignment fits."""
        if len(self._choices()) ** len(self.free) <= _MAX_EXHAUSTIVE:
            self._try_all(product(self._choices(), repeat=len(self.free)), polish=True)
        else:
            self._try_all(self._likely(), polish=False)
            self._climb()
            self._polish_best()
        return self._best[1] if self._best is not None else None

    def _choices(self) -> range:
        """Gaps for a free host, or ``_UNUSED``; by the memory policy every host takes part, but a share may be 0."""
        return range(0 if self._request.policy == "memory" and self.gaps else _UNUSED, len(self.gaps))

    def _find_gaps(self) -> Iterator[Gap]:
        at, node = 0, self._coordinator
        for host, layers in self.pinned:
            if layers.start > at:
                yield Gap(at, layers.start, node, host.node)
            at, node = layers.stop, host.node
        if at < self._request.size.layers:
            yield Gap(at, self._request.size.layers, node, self._coordinator)

    # Cost of one assignment

    def _try_all(self, assignments: Iterable[Assignment], *, polish: bool) -> bool:
        """Try ``assignments``; return whether one of them is better than the best so far."""
        better = False
        for assignment in assignments:
            shares = self._shares(assignment)
            if shares is None:
                continue
            policy_cost, weights = self._weights(shares)
            if self._best is not None and (policy_cost, weights) > self._best[0]:
                continue  # hops would only add to the cost
            hops, plan = self._plan_of(shares, polish)
            ticks = weights + hops
            cost = (float(ticks) if self._request.policy == "speed" else policy_cost, ticks)
            if self._best is None or (cost, _key(plan)) < (self._best[0], _key(self._best[1])):
                self._best, better = (cost, plan, assignment), True
        return better

    def _shares(self, assignment: Assignment) -> list[Share] | None:
        """The share of each gap; None if the gaps cannot be filled."""
        teams: list[list[StageHost]] = [[] for _ in self.gaps]
        for host, gap_index in zip(self.free, assignment, strict=True):
            if gap_index != _UNUSED:
                teams[gap_index].append(host)
        policy = self._request.policy
        bound = self._least_bound(teams) if policy == "throughput" else None
        shares = []
        for gap, team in zip(self.gaps, teams, strict=True):
            caps = [self.caps[host.id] for host in team]
            rates = [self._rate(host) for host in team]
            if policy == "memory":
                counts = level_shares(rates, caps, len(gap))
            elif bound is None:
                counts = fill_shares(rates, caps, len(gap))
            else:
                counts = fill_shares(
                    rates, [layers_within(r, c, bound) for r, c in zip(rates, caps, strict=True)], len(gap)
                )
            if counts is None:
                return None
            shares.append([(host, count) for host, count in zip(team, counts, strict=True) if count])
        return shares

    def _least_bound(self, teams: list[list[StageHost]]) -> float:
        """The least count / rate that the slowest stage can have; a pinned stage may be the slowest."""
        slowest = max(
            (len(layers) / host.decode_bytes_per_s(self._request.size) for host, layers in self.pinned), default=0.0
        )
        for gap, team in zip(self.gaps, teams, strict=True):
            rates = [host.decode_bytes_per_s(self._request.size) for host in team]
            counts = level_shares(rates, [self.caps[host.id] for host in team], len(gap)) or []
            slowest = max([slowest, *(n / rate for n, rate in zip(counts, rates, strict=False))])
        return slowest

    def _rate(self, host: StageHost) -> float:
        return (
            max(1, host.memory_bytes)
            if self._request.policy == "memory"
            else host.decode_bytes_per_s(self._request.size)
        )

    def _weights(self, shares: list[Share]) -> tuple[float, int]:
        """The quantity that the policy minimises, without hops, and the ticks of reading the weights."""
        counts = [(host, len(layers)) for host, layers in self.pinned] + [pair for share in shares for pair in share]
        ticks = sum(count * self._ticks[host.id] for host, count in counts)
        if self._request.policy == "speed":
            return float(ticks), ticks
        return max(count / self._rate(host) for host, count in counts), ticks

    def _plan_of(self, shares: list[Share], polish: bool) -> tuple[int, Plan]:
        """Ticks of the hops in the gaps, and the plan with the hosts of each gap in the cheapest order of their nodes.

        Hops between pinned hosts are the same in every plan and are left out.
        """
        stages = [(host.id, layers) for host, layers in self.pinned]
        ticks = 0
        for gap, share in zip(self.gaps, shares, strict=True):
            nodes = {node: list(group) for node, group in groupby(share, key=lambda pair: pair[0].node)}
            cost, order = self._route(gap, tuple(nodes), polish)
            ticks += cost
            at = gap.start
            for host, count in (pair for node in order for pair in nodes[node]):
                stages.append((host.id, LayerRange(at, at + count)))
                at += count
        return ticks, Plan(tuple(sorted(stages, key=lambda stage: stage[1])))

    def _route(self, gap: Gap, nodes: tuple[str, ...], polish: bool) -> tuple[int, tuple[str, ...]]:
        key = (gap.before, gap.after, nodes, polish)
        if key not in self._routes:
            self._routes[key] = cheapest_order(gap.before, gap.after, nodes, self._hop, polish=polish)
        return self._routes[key]

    def _hop(self, start: str, end: str) -> int:
        if (start, end) not in self._hops:
            self._hops[start, end] = round(_TICKS_PER_S * hop_s(self._request, self._links, start, end))
        return self._hops[start, end]

    # Many hosts

    def _likely(self) -> Iterator[Assignment]:
        """Likely assignments: the first k hosts of several orders, for every k, divided over the gaps in two ways."""
        for order in self._orders():
            for k in range(len(order), 0, -1):
                yield self._divide(order[:k], self._missing_layers)
                if len(self.gaps) > 1:
                    yield self._divide(order[:k], self._layers_per_rate)
                if self._request.policy == "memory":
                    break  # every host takes part

    def _orders(self) -> list[list[int]]:
        """Indices of free hosts: fastest first, largest first, and lowest cost per layer with its hops first."""

        def ticks_per_layer(host: StageHost) -> float:
            cap = max(1, min(self.caps[host.id], self._request.size.layers))
            return self._ticks[host.id] + 2 * self._hop(self._coordinator, host.node) / cap

        keys: list[Callable[[StageHost], float]] = [
            lambda h: -self._rate(h),
            lambda h: -self.caps[h.id],
            ticks_per_layer,
        ]
        usable = [n for n, host in enumerate(self.free) if self.caps[host.id]]
        return [sorted(usable, key=lambda n: (key(self.free[n]), n)) for key in keys]

    def _divide(self, hosts: Iterable[int], need: Callable[[int, Sequence[StageHost]], float]) -> Assignment:
        """Give one host after the other to the gap with the greatest ``need``."""
        teams: list[list[StageHost]] = [[] for _ in self.gaps]
        assignment = [_UNUSED] * len(self.free)
        for n in hosts:
            gap = max(range(len(teams)), key=lambda gap: (need(gap, teams[gap]), -gap))
            teams[gap].append(self.free[n])
            assignment[n] = gap
        return tuple(assignment)

    def _missing_layers(self, gap: int, team: Sequence[StageHost]) -> float:
        return len(self.gaps[gap]) - sum(self.caps[host.id] for host in team)

    def _layers_per_rate(self, gap: int, team: Sequence[StageHost]) -> float:
        return len(self.gaps[gap]) / (sum(self._rate(host) for host in team) or 1e-9)

    def _climb(self) -> None:
        """Move one host to another gap, or leave it out, while that lowers the cost and the effort is not spent."""
        effort = _MAX_EFFORT
        while self._best is not None:
            current = self._best[2]
            for n, gap in product(range(len(current)), self._choices()):
                changed = (*current[:n], gap, *current[n + 1 :])
                effort -= len(current) - changed.count(_UNUSED)
                if effort < 0:
                    return
                if gap != current[n] and self._try_all([changed], polish=False):
                    break
            else:
                return

    def _polish_best(self) -> None:
        """Improve the order of the best assignment, and of the assignment in which every host takes part."""
        if self._best is not None:
            everyone = self._divide(self._orders()[0], self._missing_layers)
            self._try_all([self._best[2], everyone], polish=True)


def _key(plan: Plan) -> tuple[tuple[str, int], ...]:
    return tuple((host, layers.start) for host, layers in plan.stages)
