"""The search for the best plan.

Pinned ranges stand; between them are gaps, which free hosts fill. For one assignment of free hosts to gaps, counts
(``layer_shares``) and order (``stage_order``) are found one after the other, since neither depends on the other. Few
hosts: every assignment is weighed. Many hosts: likely assignments, then single changes of the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from edgepp.layers import LayerRange
from edgepp.placement.layer_shares import fill_shares, layers_within, level_shares
from edgepp.placement.stage_order import cheapest_order
from edgepp.placement.types import Links, PlacementRequest, Plan, StageHost, hop_s, most_layers

_EXHAUSTIVE = 256
"""Up to so many assignments all are weighed: those of 8 hosts without pinned ranges, of any 6 with them."""
_EFFORT = 4000
"""Single changes tried, times the hosts that each of them weighs."""
_TICKS = 1e12
"""Costs are added up in whole picoseconds, so that equal plans compare equal in whatever order they are summed."""

_UNUSED = -1
Assignment = tuple[int, ...]
"""The gap of each free host, or ``_UNUSED``."""
Cost = tuple[float, int]
"""What the policy minimises, then a token's ticks."""
Share = list[tuple[StageHost, int]]


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
    """One search; ``hosts`` may come in any order, and their pinned ranges do not overlap."""

    def __init__(self, want: PlacementRequest, hosts: Sequence[StageHost], links: Links, coordinator: str) -> None:
        self._want, self._links, self._coordinator = want, links, coordinator
        ordered = sorted(hosts, key=lambda host: (host.node != coordinator, host.node, host.id))
        self.pinned = sorted(((h, h.pinned) for h in ordered if h.pinned is not None), key=lambda pair: pair[1])
        self.free = [host for host in ordered if host.pinned is None]
        self.gaps = list(self._find_gaps())
        self.caps = {host.id: most_layers(want, host) for host in ordered}
        self._ticks = {
            host.id: round(_TICKS * want.size.layer_bytes / host.decode_bytes_per_s(want.size)) for host in ordered
        }
        self._hops: dict[tuple[str, str], int] = {}
        self._routes: dict[tuple[str, str, tuple[str, ...], bool], tuple[int, tuple[str, ...]]] = {}
        self._best: tuple[Cost, Plan, Assignment] | None = None

    def best(self) -> Plan | None:
        """The best plan found; None where no assignment fits."""
        if len(self._choices()) ** len(self.free) <= _EXHAUSTIVE:
            self._weigh(product(self._choices(), repeat=len(self.free)), polish=True)
        else:
            self._weigh(self._likely(), polish=False)
            self._climb()
            self._finish()
        return self._best[1] if self._best is not None else None

    def _choices(self) -> range:
        """Where a free host may go; by the memory policy all take part, though a share may be nothing."""
        return range(0 if self._want.policy == "memory" and self.gaps else _UNUSED, len(self.gaps))

    def _find_gaps(self) -> Iterator[Gap]:
        at, node = 0, self._coordinator
        for host, layers in self.pinned:
            if layers.start > at:
                yield Gap(at, layers.start, node, host.node)
            at, node = layers.stop, host.node
        if at < self._want.size.layers:
            yield Gap(at, self._want.size.layers, node, self._coordinator)

    # Weighing one assignment

    def _weigh(self, assignments: Iterable[Assignment], *, polish: bool) -> bool:
        """Whether one of them is better than the best so far."""
        better = False
        for assignment in assignments:
            shares = self._shares(assignment)
            if shares is None:
                continue
            policy_cost, weights = self._weights(shares)
            if self._best is not None and (policy_cost, weights) > self._best[0]:
                continue  # hops only add to it
            hops, plan = self._lay(shares, polish)
            ticks = weights + hops
            cost = (float(ticks) if self._want.policy == "speed" else policy_cost, ticks)
            if self._best is None or (cost, _key(plan)) < (self._best[0], _key(self._best[1])):
                self._best, better = (cost, plan, assignment), True
        return better

    def _shares(self, assignment: Assignment) -> list[Share] | None:
        """Who takes how many layers of each gap; None where the gaps cannot be filled."""
        teams: list[list[StageHost]] = [[] for _ in self.gaps]
        for host, place in zip(self.free, assignment, strict=True):
            if place != _UNUSED:
                teams[place].append(host)
        policy = self._want.policy
        bound = self._slowest(teams) if policy == "throughput" else None
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

    def _slowest(self, teams: list[list[StageHost]]) -> float:
        """The least count / rate that the slowest stage can have; a pinned one may set it."""
        slowest = max(
            (len(layers) / host.decode_bytes_per_s(self._want.size) for host, layers in self.pinned), default=0.0
        )
        for gap, team in zip(self.gaps, teams, strict=True):
            rates = [host.decode_bytes_per_s(self._want.size) for host in team]
            counts = level_shares(rates, [self.caps[host.id] for host in team], len(gap)) or []
            slowest = max([slowest, *(n / rate for n, rate in zip(counts, rates, strict=False))])
        return slowest

    def _rate(self, host: StageHost) -> float:
        return max(1, host.memory) if self._want.policy == "memory" else host.decode_bytes_per_s(self._want.size)

    def _weights(self, shares: list[Share]) -> tuple[float, int]:
        """What the policy minimises, hops left out, and the ticks of streaming the weights."""
        counts = [(host, len(layers)) for host, layers in self.pinned] + [pair for share in shares for pair in share]
        ticks = sum(count * self._ticks[host.id] for host, count in counts)
        if self._want.policy == "speed":
            return float(ticks), ticks
        return max(count / self._rate(host) for host, count in counts), ticks

    def _lay(self, shares: list[Share], polish: bool) -> tuple[int, Plan]:
        """Ticks of the gaps' hops, and the plan, with the hosts of each gap in the best order of their nodes.

        Hops between pinned hosts are the same in every plan.
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
            self._hops[start, end] = round(_TICKS * hop_s(self._want, self._links, start, end))
        return self._hops[start, end]

    # Many hosts

    def _likely(self) -> Iterator[Assignment]:
        """The first k hosts in several orders, for every k, divided over the gaps in two ways."""
        for order in self._orders():
            for k in range(len(order), 0, -1):
                yield self._divide(order[:k], self._lacking)
                if len(self.gaps) > 1:
                    yield self._divide(order[:k], self._slow)
                if self._want.policy == "memory":
                    break  # all take part

    def _orders(self) -> list[list[int]]:
        """Free hosts, by index: the fastest first, the largest first, and the cheapest a layer with its hops first."""

        def reach(host: StageHost) -> float:
            cap = max(1, min(self.caps[host.id], self._want.size.layers))
            return self._ticks[host.id] + 2 * self._hop(self._coordinator, host.node) / cap

        measures: list[Callable[[StageHost], float]] = [lambda h: -self._rate(h), lambda h: -self.caps[h.id], reach]
        usable = [n for n, host in enumerate(self.free) if self.caps[host.id]]
        return [sorted(usable, key=lambda n: (measure(self.free[n]), n)) for measure in measures]

    def _divide(self, hosts: Iterable[int], need: Callable[[int, Sequence[StageHost]], float]) -> Assignment:
        """Give one host after the other to the gap that needs it most."""
        teams: list[list[StageHost]] = [[] for _ in self.gaps]
        assignment = [_UNUSED] * len(self.free)
        for n in hosts:
            gap = max(range(len(teams)), key=lambda gap: (need(gap, teams[gap]), -gap))
            teams[gap].append(self.free[n])
            assignment[n] = gap
        return tuple(assignment)

    def _lacking(self, gap: int, team: Sequence[StageHost]) -> float:
        return len(self.gaps[gap]) - sum(self.caps[host.id] for host in team)

    def _slow(self, gap: int, team: Sequence[StageHost]) -> float:
        return len(self.gaps[gap]) / (sum(self._rate(host) for host in team) or 1e-9)

    def _climb(self) -> None:
        """Change one host's gap, or leave it out, for as long as that helps and the effort lasts."""
        effort = _EFFORT
        while self._best is not None:
            present = self._best[2]
            for n, gap in product(range(len(present)), self._choices()):
                changed = (*present[:n], gap, *present[n + 1 :])
                effort -= len(present) - changed.count(_UNUSED)
                if effort < 0:
                    return
                if gap != present[n] and self._weigh([changed], polish=False):
                    break
            else:
                return

    def _finish(self) -> None:
        """Improve the order of the best assignment, and of the one in which all take part."""
        if self._best is not None:
            everyone = self._divide(self._orders()[0], self._lacking)
            self._weigh([self._best[2], everyone], polish=True)


def _key(plan: Plan) -> tuple[tuple[str, int], ...]:
    return tuple((host, layers.start) for host, layers in plan.stages)
