"""The order of nodes: the cheapest way from one node to another through a set of nodes.

Costs are whole numbers, so that equal ways compare equal; among those the first in the nodes' given order is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

Hop = Callable[[str, str], int]

_EXACT = 7
"""Up to so many nodes every order is weighed."""


def cheapest_order(
    start: str, end: str, nodes: Sequence[str], hop: Hop, *, polish: bool
) -> tuple[int, tuple[str, ...]]:
    """The cost and order of a way ``start -> every node -> end``.

    It is the best one for a few nodes; for many it is the better of nearest neighbour and the given order, which
    ``polish`` improves by 2-opt. Costs are the same in both directions.
    """
    if len(nodes) <= _EXACT:
        return _best(start, end, nodes, hop)
    orders = [tuple(nodes), _nearest(start, nodes, hop)]
    if polish:
        orders = [_two_opt(start, end, order, hop) for order in orders]
    rank = {node: n for n, node in enumerate(nodes)}
    order = min(orders, key=lambda order: (order_cost(start, end, order, hop), [rank[node] for node in order]))
    return order_cost(start, end, order, hop), order


def order_cost(start: str, end: str, order: Sequence[str], hop: Hop) -> int:
    """The cost of one way."""
    total, here = 0, start
    for node in order:
        total += hop(here, node)
        here = node
    return total + hop(here, end)


def _best(start: str, end: str, nodes: Sequence[str], hop: Hop) -> tuple[int, tuple[str, ...]]:
    """Held and Karp: the best way to each node through each set of nodes, set by set."""
    count = len(nodes)
    reached: list[dict[int, tuple[int, tuple[int, ...]]]] = [{} for _ in range(1 << count)]
    for n in range(count):
        reached[1 << n][n] = (hop(start, nodes[n]), (n,))
    for visited, ways in enumerate(reached):
        for last, (cost, order) in ways.items():
            for n in range(count):
                if not visited >> n & 1:
                    longer = (cost + hop(nodes[last], nodes[n]), (*order, n))
                    known = reached[visited | 1 << n].get(n)
                    if known is None or longer < known:
                        reached[visited | 1 << n][n] = longer
    if not count:
        return hop(start, end), ()
    cost, order = min((cost + hop(nodes[last], end), order) for last, (cost, order) in reached[-1].items())
    return cost, tuple(nodes[n] for n in order)


def _nearest(start: str, nodes: Sequence[str], hop: Hop) -> tuple[str, ...]:
    left, order, here = list(nodes), [], start
    while left:
        here = min(left, key=partial(hop, here))
        left.remove(here)
        order.append(here)
    return tuple(order)


def _two_opt(start: str, end: str, order: Sequence[str], hop: Hop) -> tuple[str, ...]:
    """Turn stretches of the way round while that makes it shorter."""
    way = [start, *order, end]
    improved = True
    while improved:
        improved = False
        for i in range(1, len(way) - 2):
            for j in range(i + 1, len(way) - 1):
                before = hop(way[i - 1], way[i]) + hop(way[j], way[j + 1])
                if hop(way[i - 1], way[j]) + hop(way[i], way[j + 1]) < before:
                    way[i : j + 1] = way[i : j + 1][::-1]
                    improved = True
    return tuple(way[1:-1])
