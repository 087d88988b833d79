"""Order of nodes: the cheapest path from one node to another through a set of nodes.

Costs are whole numbers, so that equal paths compare equal; of equal paths the first in the given order of nodes wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

Hop = Callable[[str, str], int]

_MAX_NODES_EXACT = 7
"""Greatest number of nodes for which the cheapest order is found exactly."""


def cheapest_order(
    start: str, end: str, nodes: Sequence[str], hop: Hop, *, polish: bool
) -> tuple[int, tuple[str, ...]]:
    """Cost and order of the path ``start -> every node -> end``.

    For up to 7 nodes the path is the cheapest. For more nodes it is the cheaper of nearest neighbour and the given
    order; ``polish`` improves both by 2-opt. Costs are the same in both directions.
    """
    if len(nodes) <= _MAX_NODES_EXACT:
        return _best(start, end, nodes, hop)
    orders = [tuple(nodes), _nearest(start, nodes, hop)]
    if polish:
        orders = [_two_opt(start, end, order, hop) for order in orders]
    rank = {node: n for n, node in enumerate(nodes)}
    order = min(orders, key=lambda order: (order_cost(start, end, order, hop), [rank[node] for node in order]))
    return order_cost(start, end, order, hop), order


def order_cost(start: str, end: str, order: Sequence[str], hop: Hop) -> int:
    """Cost of the path ``start -> order -> end``."""
    total, position = 0, start
    for node in order:
        total += hop(position, node)
        position = node
    return total + hop(position, end)


def _best(start: str, end: str, nodes: Sequence[str], hop: Hop) -> tuple[int, tuple[str, ...]]:
    """The cheapest path by dynamic programming over sets of nodes (Held and Karp 1962)."""
    count = len(nodes)
    reached: list[dict[int, tuple[int, tuple[int, ...]]]] = [{} for _ in range(1 << count)]
    for n in range(count):
        reached[1 << n][n] = (hop(start, nodes[n]), (n,))
    for visited, paths in enumerate(reached):
        for last, (cost, order) in paths.items():
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
    left, order, position = list(nodes), [], start
    while left:
        position = min(left, key=partial(hop, position))
        left.remove(position)
        order.append(position)
    return tuple(order)


def _two_opt(start: str, end: str, order: Sequence[str], hop: Hop) -> tuple[str, ...]:
    """Reverse parts of the path while that makes it cheaper."""
    path = [start, *order, end]
    improved = True
    while improved:
        improved = False
        for i in range(1, len(path) - 2):
            for j in range(i + 1, len(path) - 1):
                before = hop(path[i - 1], path[i]) + hop(path[j], path[j + 1])
                if hop(path[i - 1], path[j]) + hop(path[i], path[j + 1]) < before:
                    path[i : j + 1] = path[i : j + 1][::-1]
                    improved = True
    return tuple(path[1:-1])
