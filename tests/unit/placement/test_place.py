"""Which hosts get which layers, by policy, links and pins, and why a model cannot be placed."""

from __future__ import annotations

import dataclasses
import random
from itertools import combinations

import pytest

from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import find
from edgepp.placement.costs import decode_step_s, memory_needed, slowest_stage_s
from edgepp.placement.place import place, replace
from edgepp.placement.values import LinkSpeed, ModelSize, PlacementRequest, Policy, StageHost
from tests.unit.placement.brute_force import LINKS, MB, POLICIES, check, counts, host, request


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
