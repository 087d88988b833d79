"""Placement against a brute force that shares no code with it, and against what every plan owes its reader."""

from __future__ import annotations

import dataclasses
import random
import re
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.placement.costs import decode_step_s, memory_needed, plan_cost_s
from edgepp.placement.place import place, replace
from edgepp.placement.values import LinkSpeed, PlacementRequest, Plan, StageHost
from tests.builders.properties import examples
from tests.unit.placement.brute_force import MB, NODES, check, clusters, cost_of, every_plan, host, size


@settings(max_examples=examples(400))
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
    goal, token = cost_of(model, plan, hosts, speeds, coordinator)
    assert goal == pytest.approx(plan_cost_s(model, plan, hosts, speeds, coordinator))
    assert token == pytest.approx(decode_step_s(model, plan, hosts, speeds, coordinator))
    reckoned = [(p, *cost_of(model, p, hosts, speeds, coordinator)) for p in plans]
    least = min(value for _, value, _ in reckoned)
    assert goal == pytest.approx(least)
    if model.policy == "memory":  # the same counts, in no better order
        counts = {name: len(layers) for name, layers in plan.stages}
        tokens = [t for p, _, t in reckoned if {name: len(layers) for name, layers in p.stages} == counts]
    else:
        tokens = [t for _, value, t in reckoned if value <= least * (1 + 1e-9)]
    assert token == pytest.approx(min(tokens))


@settings(max_examples=examples(120))
@given(clusters(most=6, smallest=300, layers=6))
def test_six_hosts_equal_brute_force(
    case: tuple[PlacementRequest, list[StageHost], dict[tuple[str, str], LinkSpeed], str],
) -> None:
    model, hosts, speeds, coordinator = case
    found = min((cost_of(model, p, hosts, speeds, coordinator)[0] for p in every_plan(model, hosts)), default=None)
    if found is None:
        with pytest.raises(PlanError):
            place(*case)
    else:
        assert cost_of(model, place(*case), hosts, speeds, coordinator)[0] == pytest.approx(found)


@settings(max_examples=examples(250))
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
            least = cost_of(model, even, hosts, speeds, coordinator)[0]
            assert cost_of(model, plan, hosts, speeds, coordinator)[0] <= least * (1 + 1e-9)


@settings(max_examples=examples(150))
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


@settings(max_examples=examples(400))
@given(clusters(shared=False, pins=False, smallest=400), st.data())
def test_replace_loads_the_fewest_again_among_plans_nearly_as_good(
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
    plans = [(p, cost_of(model, p, hosts, speeds, coordinator)[0]) for p in every_plan(model, hosts)]
    if not plans:
        with pytest.raises(PlanError):
            replace(model, hosts, speeds, coordinator, present)
        return
    plan = replace(model, hosts, speeds, coordinator, present)
    check(model, plan, hosts)
    bound = 1.15 * min(value for _, value in plans)
    assert cost_of(model, plan, hosts, speeds, coordinator)[0] <= bound * (1 + 1e-9)
    if present in [p for p, value in plans if value <= bound * (1 - 1e-9)]:
        assert plan == present

    def kept(some: Plan) -> int:
        return sum(len(layers) for name, layers in some.stages if (name, layers) in present_set)

    assert kept(plan) >= max(kept(p) for p, value in plans if value <= bound * (1 - 1e-9))


@settings(max_examples=examples(150))
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
