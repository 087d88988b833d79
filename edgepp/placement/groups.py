"""Groups of hosts that share each layer of one stage, as one host: order, shares and memory of the ranks.

To the search, a group is a host with the rates and the memory that its ranks have together, and with the time in which
they add partial sums. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from edgepp.errors import PlanError, UsageError
from edgepp.model.tensor_shares import apportion
from edgepp.placement.costs import max_layers, working_bytes
from edgepp.placement.values import UNKNOWN_LINK, Links, LinkSpeed, PlacementRequest, StageHost, sum_over, sums_s


@dataclass(frozen=True)
class Part:
    """One rank of a group: a host, and its weight among the ranks (see ``model.tensor_shares``)."""

    host: str
    weight: int


_BETWEEN_PARTS, _BEFORE_WEIGHT = "\x1f", "\x1e"  # which no id of a host contains


def group_id(parts: Sequence[Part]) -> str:
    """The id of the host that ``parts`` make, in rank order."""
    return _BETWEEN_PARTS.join(f"{part.host}{_BEFORE_WEIGHT}{part.weight}" for part in parts)


def parts_of(host: str) -> tuple[Part, ...]:
    """The ranks of the host ``host`` in order; of a host that is no group, itself."""
    if _BEFORE_WEIGHT not in host:
        return (Part(host, 1),)
    pairs = (part.partition(_BEFORE_WEIGHT) for part in host.split(_BETWEEN_PARTS))
    return tuple(Part(name, int(weight)) for name, _, weight in pairs)


def host_called(request: PlacementRequest, hosts: Sequence[StageHost], host: str, sums: Links) -> StageHost:
    """The host with the id ``host``: one of ``hosts``, or a group of ``hosts``."""
    by_id = {one.id: one for one in hosts}
    if host in by_id:
        return by_id[host]
    parts = parts_of(host)
    ranked = [by_id[part.host] for part in parts]
    cost = sum_cost(sums, [one.node for one in ranked]) or sum_over(UNKNOWN_LINK)
    return _with_weights(request, ranked, tuple(part.weight for part in parts), cost)


def sum_cost(sums: Links, nodes: Sequence[str]) -> LinkSpeed | None:
    """The cost of a sum over ``nodes``: that of the slowest pair; None where a pair was not measured."""
    pairs = [sums.get((a, b)) or sums.get((b, a)) for a, b in combinations(nodes, 2)]
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return None
    return LinkSpeed(max(one.latency_s for one in known), min(one.bytes_per_s for one in known))


def fractions(request: PlacementRequest, weights: Sequence[int]) -> tuple[list[float], list[float]]:
    """The part of a layer's keys and values, and of its weights, that each rank of ``weights`` has.

    Raises:
        PlanError: the layers cannot be shared so.
    """
    shared = request.size.shared
    if shared is None:
        raise PlanError("the layers of this model's family cannot be shared", "join without --tensor")
    try:
        heads, columns = shared.units.cut_heads(weights), shared.units.cut_ffn(weights)
    except UsageError as error:
        raise PlanError(str(error), error.hint) from error
    attention = shared.attention_bytes / max(1, request.size.layer_bytes)
    kv = [len(part) / shared.units.kv_heads for part in heads]
    ffn = [len(part) / shared.units.ffn for part in columns]
    return kv, [attention * a + (1 - attention) * f for a, f in zip(kv, ffn, strict=True)]


def make_group(request: PlacementRequest, hosts: Sequence[StageHost], sums: Links) -> StageHost:
    """The host that ``hosts`` are together, with shares by their speed, or by their memory where that is short.

    Rank 0, which the pipeline reaches, is the coordinator's host or else the fastest. All have the same pinned range.

    Raises:
        PlanError: the layers cannot be shared by so many.
    """
    size = request.size
    ranked = sorted(hosts, key=lambda h: (not h.coordinator, -h.decode_bytes_per_s(size), h.id))
    cost = sum_cost(sums, [host.node for host in ranked]) or sum_over(UNKNOWN_LINK)
    wanted = len(ranked[0].pinned) if ranked[0].pinned is not None else size.layers
    found: list[tuple[tuple[bool, float, float], StageHost]] = []
    refused: PlanError | None = None
    for weights in dict.fromkeys(_likely_weights(request, ranked)):
        try:
            group = _with_weights(request, ranked, weights, cost)
        except PlanError as error:
            refused = refused or error
            continue
        capacity = max_layers(request, group)
        fits = capacity >= wanted
        found.append(((not fits, 0.0 if fits else -capacity, 1 / group.decode_bytes_per_s(size)), group))
    if not found:
        raise refused or PlanError(f"{len(ranked)} machines cannot share the layers of this model")
    return min(found, key=lambda one: (one[0], one[1].id))[1]


def _likely_weights(request: PlacementRequest, hosts: Sequence[StageHost]) -> Iterator[tuple[int, ...]]:
    """Weights to try: equal ones, all of two ranks, and those in proportion to speed and to memory."""
    yield (1,) * len(hosts)
    shared = request.size.shared
    parts = -(-shared.units.kv_heads // shared.units.head_unit) if shared is not None else 0
    if parts < len(hosts):
        return
    if len(hosts) == 2:
        yield from ((part, parts - part) for part in range(1, parts) if 2 * part != parts)
        return
    rates = [host.decode_bytes_per_s(request.size) for host in hosts]
    for measures in (rates, [host.memory_bytes for host in hosts]):
        largest = max(measures)
        counts = apportion(parts, [max(1, round(1000 * one / largest)) for one in measures])
        if len(set(counts)) > 1:
            yield counts


def _with_weights(
    request: PlacementRequest, hosts: Sequence[StageHost], weights: tuple[int, ...], cost: LinkSpeed
) -> StageHost:
    """The group of ``hosts`` in rank order that share as ``weights`` say; the slowest rank counts."""
    size = request.size
    kv, weight_shares = fractions(request, weights)
    layer_s = max(
        share * size.layer_bytes / host.stream_bytes_per_s for share, host in zip(weight_shares, hosts, strict=True)
    )
    row_s = max(share * size.layer_flops / host.flops_per_s for share, host in zip(weight_shares, hosts, strict=True))
    parts = [Part(host.id, weight) for host, weight in zip(hosts, weights, strict=True)]
    return StageHost(
        id=group_id(parts),
        node=hosts[0].node,
        memory_bytes=_memory_bytes(request, hosts, kv, weight_shares, _head_shares(request, hosts, weights)),
        stream_bytes_per_s=size.layer_bytes / layer_s,
        flops_per_s=max(1.0, size.layer_flops / row_s),
        pinned=hosts[0].pinned,
        name=" and ".join(map(str, hosts)),
        sums_s=sums_s(size, cost, 1, len(hosts)) + 2 * max(host.half_s for host in hosts),
        groups_with=frozenset(host.id for host in hosts),
    )


def _memory_bytes(
    request: PlacementRequest,
    hosts: Sequence[StageHost],
    kv: Sequence[float],
    shares: Sequence[float],
    heads: Sequence[float],
) -> int:
    """Memory of one process that holds as many layers as the group does; each rank needs working space of its own.

    ``kv``, ``shares`` and ``heads`` are each rank's part of keys and values, of weights, and of the output head. On the
    coordinator's machine embedding and head count whole, and with them the rank's part of the head.
    """
    size, working = request.size, working_bytes(request.size)
    whole_kv = size.kv_bytes * request.context * request.max_sequences
    layer = size.layer_bytes * 5 / 4 + whole_kv
    layers = math.inf
    for host, kv_share, share, head in zip(hosts, kv, shares, heads, strict=True):
        ends = (size.ends_bytes if host.coordinator else head * size.head_bytes) * 5 / 4
        room = host.memory_bytes - working - ends
        layers = min(layers, room / (share * size.layer_bytes * 5 / 4 + kv_share * whole_kv))
    return max(0, int(working + layers * layer))


def _head_shares(request: PlacementRequest, hosts: Sequence[StageHost], weights: Sequence[int]) -> list[float]:
    """The part of the output head that each rank has where the group is the last stage, as it is unless pinned."""
    pinned = hosts[0].pinned
    is_last = pinned is None or pinned.stop == request.size.layers
    return [weight / sum(weights) if is_last else 0.0 for weight in weights]
