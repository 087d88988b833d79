"""Placement against a brute force that shares no code with it, and against what every plan owes its reader."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgepp.errors import PlanError
from edgepp.layers import LayerRange, check_tiling
from edgepp.model.catalogue.cards import find
from edgepp.placement.place import place, replace
from edgepp.placement.types import (
    LinkSpeed,
    ModelSize,
    PlacementRequest,
    Plan,
    Policy,
    StageHost,
    decode_step_s,
    memory_needed,
    plan_cost_s,
    slowest_stage_s,
)

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


def reckon(
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


@settings(max_examples=400, deadline=None)
@given(clusters())
def test_small_cases_equal_brute_force(
    case: tuple[PlacementRequest, list[StageHost], dict[tuple[str, str], LinkSpeed], str],
) -> None:
    model, hosts, speeds, coordinator = case
    plans = list(every_plan(model, hosts))
    if not plans:
        with pytest.raises(PlanError):
            place(*case)
        return
    plan = place(*case)
    check(model, plan, hosts)
    goal, token = reckon(model, plan, hosts, speeds, coordinator)
    assert goal == pytest.approx(plan_cost_s(model, plan, hosts, speeds, coordinator))
    assert token == pytest.approx(decode_step_s(model, plan, hosts, speeds, coordinator))
    reckoned = [(p, *reckon(model, p, hosts, speeds, coordinator)) for p in plans]
    least = min(value for _, value, _ in reckoned)
    assert goal == pytest.approx(least)
    if model.policy == "memory":  # the same counts, in no better order
        counts = {name: len(layers) for name, layers in plan.stages}
        tokens = [t for p, _, t in reckoned if {name: len(layers) for name, layers in p.stages} == counts]
    else:
        tokens = [t for _, value, t in reckoned if value <= least * (1 + 1e-9)]
    assert token == pytest.approx(min(tokens))


@settings(max_examples=120, deadline=None)
@given(clusters(most=6, smallest=300, layers=6))
def test_six_hosts_equal_brute_force(
    case: tuple[PlacementRequest, list[StageHost], dict[tuple[str, str], LinkSpeed], str],
) -> None:
    model, hosts, speeds, coordinator = case
    found = min((reckon(model, p, hosts, speeds, coordinator)[0] for p in every_plan(model, hosts)), default=None)
    if found is None:
        with pytest.raises(PlanError):
            place(*case)
    else:
        assert reckon(model, place(*case), hosts, speeds, coordinator)[0] == pytest.approx(found)


@settings(max_examples=250, deadline=None)
@given(clusters(most=14, layers=40, pins=False), st.randoms(use_true_random=False))
def test_a_plan_is_valid_no_worse_than_the_even_split_and_the_same_for_every_order_of_hosts(
    case: tuple[PlacementRequest, list[StageHost], dict[tuple[str, str], LinkSpeed], str], shuffler: random.Random
) -> None:
    model, hosts, speeds, coordinator = case
    hosts = [dataclasses.replace(one, memory_bytes=one.memory_bytes * 4) for one in hosts]
    try:
        plan = place(model, hosts, speeds, coordinator)
    except PlanError:
        assume(False)
    check(model, plan, hosts)
    shuffled = list(hosts)
    shuffler.shuffle(shuffled)
    assert place(model, shuffled, speeds, coordinator) == plan
    ordered = sorted(hosts, key=lambda one: (one.node != coordinator, one.node, one.id))
    for some in (ordered, ordered[: len(ordered) // 2 or 1]):
        if len(some) > model.size.layers:
            continue
        cuts = [model.size.layers * n // len(some) for n in range(len(some) + 1)]
        ranges = [LayerRange(a, b) for a, b in pairwise(cuts)]
        if all(
            memory_needed(model, len(r), h.coordinator) <= h.memory_bytes for h, r in zip(some, ranges, strict=True)
        ):
            even = Plan(tuple((h.id, r) for h, r in zip(some, ranges, strict=True)))
            least = reckon(model, even, hosts, speeds, coordinator)[0]
            assert reckon(model, plan, hosts, speeds, coordinator)[0] <= least * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(clusters(most=12, layers=40, smallest=400))
def test_pins_are_kept_among_many_hosts(
    case: tuple[PlacementRequest, list[StageHost], dict[tuple[str, str], LinkSpeed], str],
) -> None:
    model, hosts, _, _ = case
    free: list[StageHost] = []
    at = 0
    for one in hosts:  # make the pins agree
        pin = one.pinned if one.pinned is not None and one.pinned.start >= at else None
        at = pin.stop if pin is not None else at
        free.append(dataclasses.replace(one, pinned=pin, memory_bytes=one.memory_bytes * 9))
    try:
        plan = place(model, free, *case[2:])
    except PlanError:
        return
    check(model, plan, free)


@settings(max_examples=400, deadline=None)
@given(clusters(shared=False, pins=False, smallest=400), st.data())
def test_replace_loads_the_least_anew_among_plans_nearly_as_good(
    case: tuple[PlacementRequest, list[StageHost], dict[tuple[str, str], LinkSpeed], str], data: st.DataObject
) -> None:
    model, hosts, speeds, coordinator = case
    try:
        present = place(model, hosts, speeds, coordinator)
    except PlanError:
        assume(False)
    present_set = set(present.stages)
    going = data.draw(st.sampled_from([None, *hosts]))
    hosts = [one for one in hosts if one is not going]
    if data.draw(st.booleans()):
        hosts.append(host("new", memory=data.draw(st.sampled_from([300, 900, 2000])) * MB, speed=2e10))
    plans = [(p, reckon(model, p, hosts, speeds, coordinator)[0]) for p in every_plan(model, hosts)]
    if not plans:
        with pytest.raises(PlanError):
            replace(model, hosts, speeds, coordinator, present)
        return
    plan = replace(model, hosts, speeds, coordinator, present)
    check(model, plan, hosts)
    bound = 1.15 * min(value for _, value in plans)
    assert reckon(model, plan, hosts, speeds, coordinator)[0] <= bound * (1 + 1e-9)
    if present in [p for p, value in plans if value <= bound * (1 - 1e-9)]:
        assert plan == present

    def kept(some: Plan) -> int:
        return sum(len(layers) for name, layers in some.stages if (name, layers) in present_set)

    assert kept(plan) >= max(kept(p) for p, value in plans if value <= bound * (1 - 1e-9))


# Single cases


def counts(plan: Plan) -> dict[str, int]:
    return {name.split("/")[0]: len(layers) for name, layers in plan.stages}


def test_layers_go_by_memory() -> None:
    hosts = [host("a", 6_000 * MB), host("b", 12_000 * MB), host("c", 18_000 * MB)]
    assert counts(place(request(30), hosts)) == {"a": 5, "b": 10, "c": 15}


def test_the_ends_count_on_the_coordinators_machine() -> None:
    tight = memory_needed(request(4), 2, False)
    hosts = [host("a", tight, coordinator=True), host("b", 2 * tight)]
    assert counts(place(request(4), hosts, LINKS, "a")) == {"a": 1, "b": 3}


def test_a_host_whose_arithmetic_is_slow_counts_as_slow_however_fast_its_memory() -> None:
    slow = dataclasses.replace(host("slow", speed=1e12), flops_per_s=1e9)
    quick = host("quick")
    assert counts(place(request(12, "speed"), [slow, quick])) == {"quick": 12}


def test_speed_leaves_slow_hosts_out_and_throughput_does_not() -> None:
    hosts = [host("fast", speed=5e10), host("slow", speed=1e10)]
    assert counts(place(request(12, "speed"), hosts)) == {"fast": 12}
    assert counts(place(request(12, "throughput"), hosts)) == {"fast": 10, "slow": 2}


def test_throughput_minimises_a_tokens_time_where_a_pinned_stage_is_the_slowest() -> None:
    hosts = [
        host("slow", speed=1e9, pinned=LayerRange(0, 1)),
        host("quick", memory_needed(request(7), 5, False), speed=2e10),
        host("other", speed=1e10),
    ]
    assert counts(place(request(7, "throughput"), hosts)) == {"slow": 1, "quick": 5, "other": 1}


def test_hosts_of_one_node_stay_together_and_the_coordinators_machine_is_first() -> None:
    hosts = [host("b"), host("a"), host("me"), dataclasses.replace(host("b"), id="b/1")]
    plan = place(request(8), hosts, LINKS, "me")
    assert [name for name, _ in plan.stages] == ["me/0", "a/0", "b/0", "b/1"]


def test_the_order_follows_the_links() -> None:
    near, far = LinkSpeed(0.0001, 1e9), LinkSpeed(0.02, 1e9)
    speeds = {("me", "c"): near, ("c", "a"): near, ("a", "b"): near, ("me", "b"): near}
    speeds |= {("me", "a"): far, ("b", "c"): far}
    plan = place(request(9), [host("a"), host("b"), host("c")], speeds, "me")
    assert [name for name, _ in plan.stages] in (["b/0", "a/0", "c/0"], ["c/0", "a/0", "b/0"])


def test_the_rest_is_fitted_around_a_pinned_range() -> None:
    plan = place(request(12), [host("a"), host("mid", pinned=LayerRange(4, 8)), host("b")])
    assert plan.stages[1] == ("mid/0", LayerRange(4, 8))
    assert {name for name, _ in plan.stages} == {"a/0", "mid/0", "b/0"}


@pytest.mark.parametrize(
    ("hosts", "sentence"),
    [
        ([], "no node offers"),
        ([host("mini", pinned=LayerRange(0, 5)), host("air", pinned=LayerRange(4, 8))], "4 are pinned twice: to mini"),
        ([host("mini", pinned=LayerRange(4, 9))], "mini is pinned to layers 4-8, but the model has only layers 0-7"),
        ([host("mini", 300 * MB, pinned=LayerRange(0, 5))], "layers 0-4 do not fit mini"),
        ([host("mini", pinned=LayerRange(0, 5))], "no node is left for layers 5-7: pinned are mini 0-4"),
        ([host("mini", pinned=LayerRange(2, 5)), host("b")], "no node is left for layers 0-1, 5-7"),
        ([host("mini", 500 * MB)], r"the model does not fit: its 8 layers .* need 1.1 GB, and \d+ MB"),
    ],
)
def test_what_cannot_be_says_why(hosts: list[StageHost], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        place(request(8), hosts)


@pytest.mark.parametrize("numbers", [{"memory": -1}, {"speed": 0.0}, {"speed": float("nan")}])
def test_impossible_numbers_of_a_node_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="liar"):
        host("liar", **numbers)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(200, 3000), min_size=1, max_size=4),
    st.integers(2, 16),
    st.sampled_from([2000, 20_000, 100_000]),
    st.integers(1, 4),
)
def test_what_would_help_does_help(memories: list[int], layers: int, context: int, sequences: int) -> None:
    model = PlacementRequest(dataclasses.replace(size(layers), layer_bytes=200 * MB), context, sequences)
    hosts = [host(NODES[n], memory * MB) for n, memory in enumerate(memories)]
    try:
        place(model, hosts)
    except PlanError as error:
        hint = error.hint
    else:
        return
    if found := re.search(r"a context of (\d+)", hint):
        place(dataclasses.replace(model, context=int(found[1])), hosts)
        with pytest.raises(PlanError):
            place(dataclasses.replace(model, context=int(found[1]) + 256), hosts)
    if found := re.search(r"(\d+) sequences? instead", hint):
        place(dataclasses.replace(model, max_sequences=int(found[1])), hosts)
    found = re.search(r"one more machine with ([\d.]+) (GB|MB)", hint)
    assert found, hint
    place(model, [*hosts, host("new", int(float(found[1]) * (1e9 if found[2] == "GB" else 1e6)))])


def test_a_smaller_quantisation_is_suggested_where_it_helps() -> None:
    model = PlacementRequest(ModelSize.of(find("llama-3.1-8b-bf16")), 4096, 1)
    with pytest.raises(PlanError) as caught:
        place(model, [host("mini", 14_000 * MB, coordinator=True)])
    assert "the model in 8 bits" in caught.value.hint
    with pytest.raises(PlanError) as caught:
        place(model, [host("mini", 9_000 * MB, coordinator=True)])
    assert "the model in 4 bits" in caught.value.hint


def test_a_surviving_plan_stays_and_a_better_one_comes() -> None:
    hosts = [host("a"), host("b")]
    present = place(request(20), hosts)
    grown = [dataclasses.replace(hosts[0], memory_bytes=11_000 * MB), hosts[1]]
    assert replace(request(20), grown, LINKS, "", present) == present
    joined = replace(request(20), [*hosts, host("c")], LINKS, "", present)
    assert sorted(counts(joined).values()) == [6, 7, 7]


def test_a_spare_takes_the_place_of_a_lost_host_and_nobody_else_moves() -> None:
    hosts = [host("a", 4000 * MB), host("b", 4000 * MB), host("c", 4000 * MB)]
    present = place(request(9), hosts)
    plan = replace(request(9), [hosts[0], host("d", 4100 * MB), hosts[2]], LINKS, "", present)
    assert [name.replace("d", "b") for name, _ in plan.stages] == [name for name, _ in present.stages]
    assert len(set(plan.stages) & set(present.stages)) == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_eighty_layers_over_sixty_four_nodes(policy: Policy) -> None:
    draw = random.Random(policy)  # noqa: S311
    hosts = [
        host(f"n{n:02}", int(draw.uniform(2e9, 16e9)), draw.uniform(5e9, 1e11), coordinator=n == 0) for n in range(64)
    ]
    names = [one.node for one in hosts]
    speeds = {pair: LinkSpeed(draw.uniform(1e-4, 5e-3), 1e8) for pair in combinations(names, 2)}
    model = PlacementRequest(ModelSize.of(find("llama-3.1-70b-4bit")), 8192, 1, policy)
    plan = place(model, hosts, speeds, "n00")
    check(model, plan, hosts)
    assert slowest_stage_s(model, plan, hosts) <= decode_step_s(model, plan, hosts, speeds, "n00")
    left = [one for one in hosts if one.id != plan.stages[2][0]]
    again = replace(model, left, speeds, "n00", plan)
    check(model, again, left)
    assert len(set(again.stages) & set(plan.stages)) > len(plan.stages) // 2
