"""Clusters to place a model on, and a search through every plan that shares no code with ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise, permutations

from hypothesis import strategies as st

from edgepp.layer_range import LayerRange, check_tiling
from edgepp.placement.costs import memory_needed
from edgepp.placement.values import LinkSpeed, ModelSize, PlacementRequest, Plan, Policy, StageHost

MB = 1_000_000
POLICIES: tuple[Policy, ...] = ("memory", "speed", "throughput")
NODES = ("a", "b", "c", "d", "e")
LINKS: Mapping[tuple[str, str], LinkSpeed] = {}


def size(layers: int) -> ModelSize:
    return ModelSize(
        layers, hidden=1024, layer_bytes=100 * MB, ends_bytes=80 * MB, kv_bytes=10_000, layer_flops=356 * MB
    )


def request(layers: int, policy: Policy = "memory", context: int = 1000, sequences: int = 1) -> PlacementRequest:
    return PlacementRequest(size(layers), context, sequences, policy)


def host(name: str, memory: int = 10_000 * MB, speed: float = 1e10, **more: object) -> StageHost:
    values = {"node": name, "name": name, **more}
    return StageHost(id=f"{name}/0", memory_bytes=memory, stream_bytes_per_s=speed, flops_per_s=1e12, **values)  # type: ignore[arg-type]


links = st.dictionaries(
    st.sampled_from([*combinations(("", *NODES), 2)]),
    st.builds(LinkSpeed, st.sampled_from([0.0, 0.001, 0.004, 0.03, 0.2]), st.sampled_from([1e5, 1e7, 1e9])),
)


@st.composite
def clusters(
    draw: st.DrawFn, most: int = 4, smallest: int = 90, shared: bool = True, pins: bool = True, layers: int = 7
) -> tuple[PlacementRequest, list[StageHost], dict[tuple[str, str], LinkSpeed], str]:
    total = draw(st.integers(1, layers))
    coordinator = draw(st.sampled_from(["", "a", "c"]))
    hosts: list[StageHost] = []
    for n in range(draw(st.integers(1, most))):
        node = draw(st.sampled_from(NODES)) if shared else NODES[n]
        start = draw(st.integers(0, total - 1))
        pinned = (
            LayerRange(start, draw(st.integers(start + 1, total))) if pins and draw(st.integers(0, 9)) == 9 else None
        )
        hosts.append(
            StageHost(
                id=f"{node}/{n}",
                node=node,
                memory_bytes=draw(st.sampled_from([smallest, 200, 300, 400, 600, 900, 2000])) * MB,
                stream_bytes_per_s=draw(st.sampled_from([1e9, 2e9, 3e9, 1.1e10, 5e10])),
                flops_per_s=1e12,
                pinned=pinned,
                coordinator=node == coordinator and not any(other.coordinator for other in hosts),
            )
        )
    model = request(total, draw(st.sampled_from(POLICIES)), draw(st.sampled_from([1000, 8000])))
    return model, hosts, draw(links), coordinator


# The brute force


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    for cuts in combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, total)))


def together(order: Sequence[StageHost]) -> bool:
    """Whether each node's free hosts stand together between pinned ones."""
    left: set[tuple[int, str]] = set()
    run, last = 0, ""
    for one in order:
        if one.pinned is not None:
            run, last = run + 1, ""
        elif one.node != last:
            if (run, one.node) in left:
                return False
            left.add((run, one.node))
            last = one.node
    return True


def every_plan(request: PlacementRequest, hosts: Sequence[StageHost]) -> Iterator[Plan]:
    pinned = {one.id for one in hosts if one.pinned is not None}
    for count in range(1, min(len(hosts), request.size.layers) + 1):
        for order in permutations(hosts, count):
            if not pinned <= {one.id for one in order} or not together(order):
                continue
            for counts in compositions(request.size.layers, count):
                stages, at = [], 0
                for one, layers in zip(order, counts, strict=True):
                    span = LayerRange(at, at + layers)
                    if one.pinned not in (None, span):
                        break
                    if memory_needed(request, layers, one.coordinator) > one.memory_bytes:
                        break
                    stages.append((one.id, span))
                    at += layers
                else:
                    yield Plan(tuple(stages))


def hop(request: PlacementRequest, links: Mapping[tuple[str, str], LinkSpeed], a: str, b: str) -> float:
    if a == b:
        return 0.0
    link = links.get((a, b), links.get((b, a), LinkSpeed(0.0005, 100e6)))
    return link.latency_s + 4 * request.size.hidden / link.bytes_per_s


def cost_of(
    request: PlacementRequest,
    plan: Plan,
    hosts: Sequence[StageHost],
    links: Mapping[tuple[str, str], LinkSpeed],
    coordinator: str,
) -> tuple[float, float]:
    """What the policy minimises, and a token's seconds."""
    by_id = {one.id: one for one in hosts}
    stages = [(by_id[name], len(layers)) for name, layers in plan.stages]
    times = [layers * request.size.layer_bytes / one.stream_bytes_per_s for one, layers in stages]
    way = [coordinator, *(one.node for one, _ in stages), coordinator]
    token = sum(times) + sum(hop(request, links, a, b) for a, b in pairwise(way))
    fullest = max(layers / one.memory_bytes for one, layers in stages)
    return {"memory": fullest, "speed": token, "throughput": max(times)}[request.policy], token


def check(request: PlacementRequest, plan: Plan, hosts: Sequence[StageHost]) -> None:
    """What every plan owes."""
    by_id = {one.id: one for one in hosts}
    assert [layers for _, layers in plan.stages] == sorted(layers for _, layers in plan.stages)
    check_tiling([layers for _, layers in plan.stages], request.size.layers)
    assert len({name for name, _ in plan.stages}) == len(plan.stages)
    for name, layers in plan.stages:
        assert memory_needed(request, len(layers), by_id[name].coordinator) <= by_id[name].memory_bytes
    assert {(one.id, one.pinned) for one in hosts if one.pinned is not None} <= set(plan.stages)


# Single cases


def counts(plan: Plan) -> dict[str, int]:
    return {name.split("/")[0]: len(layers) for name, layers in plan.stages}
