"""Groups of hosts that share each layer: shares, order of ranks, memory, and when the search uses them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import find
from edgepp.placement.costs import decode_step_s, max_layers
from edgepp.placement.group_search import GROUP_GAIN, with_groups
from edgepp.placement.groups import Part, fractions, group_id, host_called, make_group, parts_of
from edgepp.placement.place import place
from edgepp.placement.values import LinkSpeed, ModelSize, PlacementRequest, StageHost

SIZE = ModelSize.of(find("llama-3.2-1b-4bit"))
SPEED = PlacementRequest(SIZE, 2048, 1, "speed")
QUICK, SLOW = LinkSpeed(0.00025, 110e6), LinkSpeed(0.005, 110e6)


def host(node: str, stream: float = 10e9, memory: float = 8e9, flops: float = 300e9, **more: object) -> StageHost:
    return StageHost(node, node, int(memory), stream, flops, name=node, **more)  # type: ignore[arg-type]


def sums(cost: LinkSpeed = QUICK, nodes: str = "abcd") -> dict[tuple[str, str], LinkSpeed]:
    return {(one, other): cost for one in nodes for other in nodes if one < other}


@given(st.lists(st.tuples(st.text("0123abc/-_+=", min_size=1), st.integers(1, 1000)), min_size=2, max_size=16))
def test_the_id_of_a_group_names_its_ranks(parts: list[tuple[str, int]]) -> None:
    found = [Part(*one) for one in parts]
    assert parts_of(group_id(found)) == tuple(found)
    assert parts_of(found[0].host) == (Part(found[0].host, 1),)


def test_equal_machines_share_equally_and_the_coordinator_is_rank_0() -> None:
    group = make_group(SPEED, [host("b"), host("a"), host("d", coordinator=True)][1:], sums())
    assert [part.weight for part in parts_of(group.id)] == [1, 1]
    assert [part.host for part in parts_of(group.id)] == ["d", "a"]
    assert group.node == "d"
    one = host("a").decode_bytes_per_s(SIZE)
    assert 1.2 < group.decode_bytes_per_s(SIZE) / one < 2


@pytest.mark.parametrize(("rates", "weights"), [((5e9, 3e9), [5, 3]), ((3e9, 5e9), [5, 3]), ((7e9, 1e9), [7, 1])])
def test_shares_follow_the_measured_speed(rates: tuple[float, float], weights: list[int]) -> None:
    group = make_group(SPEED, [host("a", rates[0]), host("b", rates[1])], sums())
    assert [part.weight for part in parts_of(group.id)] == weights


def test_shares_follow_the_memory_where_it_is_short() -> None:
    small, large = host("a", memory=0.45e9), host("b", memory=8e9)
    group = make_group(SPEED, [small, large], sums())
    assert {part.host: part.weight for part in parts_of(group.id)}["b"] > 4
    assert max_layers(SPEED, group) == SIZE.layers
    halves = host_called(SPEED, [small, large], group_id([Part("a", 1), Part("b", 1)]), sums())
    assert max_layers(SPEED, halves) < SIZE.layers


def test_a_group_holds_what_its_ranks_hold_by_their_shares() -> None:
    whole, half = host("a", memory=2e9), [host("a", memory=2e9), host("b", memory=2e9)]
    request = replace(SPEED, context=100_000, size=replace(SIZE, head_bytes=0))
    alone, both = max_layers(request, whole), max_layers(request, make_group(request, half, sums()))
    assert 2 * alone <= both <= 2 * alone + 1


def test_each_rank_has_its_part_of_the_head_unless_other_stages_follow() -> None:
    hosts = [host("a", memory=2e9, coordinator=True), host("b", memory=1e9)]
    halves = group_id([Part("a", 1), Part("b", 1)])

    def memory_bytes(pinned: LayerRange | None, head_bytes: int) -> int:
        request = replace(SPEED, size=replace(SIZE, head_bytes=head_bytes))
        return host_called(request, [replace(one, pinned=pinned) for one in hosts], halves, sums()).memory_bytes

    last, first = LayerRange(8, 16), LayerRange(0, 8)
    assert memory_bytes(first, 0) == memory_bytes(first, SIZE.head_bytes)
    for layers in (None, last):
        taken = memory_bytes(layers, 0) - memory_bytes(layers, SIZE.head_bytes)
        assert taken == pytest.approx(SIZE.head_bytes * 5 / 4, rel=0.02), "b has half, and a layer counts twice"


def test_fractions_are_those_of_heads_and_columns() -> None:
    kv, weights = fractions(SPEED, (5, 3))
    assert kv == [5 / 8, 3 / 8]
    assert sum(weights) == pytest.approx(1)
    assert weights[0] == pytest.approx(5 / 8, abs=0.01)


def test_what_cannot_be_shared_is_said() -> None:
    with pytest.raises(PlanError, match="8 KV heads"):
        make_group(SPEED, [host(str(node)) for node in range(9)], {})
    with pytest.raises(PlanError, match="family"):
        make_group(replace(SPEED, size=replace(SIZE, shared=None)), [host("a"), host("b")], {})


def grouped(hosts: list[StageHost], cost: dict[tuple[str, str], LinkSpeed], **more: object) -> list[str]:
    found = with_groups(SPEED, hosts, {}, cost, "a", **more)  # type: ignore[arg-type]
    return [str(one) for one in found if one.groups_with]


def test_groups_are_used_where_sums_were_measured_and_pay() -> None:
    hosts = [host("a", coordinator=True), host("b")]
    assert grouped(hosts, sums(QUICK)) == ["a and b"]
    assert grouped(hosts, {}) == []
    assert grouped(hosts, sums(SLOW)) == []
    assert with_groups(replace(SPEED, policy="memory"), hosts, {}, sums(), "a") == tuple(hosts)
    assert grouped([replace(hosts[0], pinned=LayerRange(0, 4)), hosts[1]], sums()) == []
    assert grouped([hosts[0], replace(hosts[1], node="a")], sums()) == []


def test_a_group_in_force_stays_unless_another_plan_is_clearly_better() -> None:
    hosts = [host("a", coordinator=True), host("b")]
    current = frozenset({frozenset({"a", "b"})})
    rising = (LinkSpeed(step * 1e-5, 110e6) for step in range(10, 200))
    barely = next(cost for cost in rising if not grouped(hosts, sums(cost)))
    assert grouped(hosts, sums(barely), current=current) == ["a and b"]
    assert grouped(hosts, sums(SLOW), current=current) == []
    assert grouped(hosts[:1], sums(), current=current) == []


@given(st.floats(1e-5, 3e-3), st.floats(2e9, 40e9), st.floats(2e9, 40e9))
def test_a_chosen_group_is_predicted_faster_than_any_plan_without(latency_s: float, one: float, other: float) -> None:
    hosts = [host("a", one, coordinator=True), host("b", other)]
    cost = sums(LinkSpeed(latency_s, 110e6))
    chosen = with_groups(SPEED, hosts, {}, cost, "a")
    steps = [decode_step_s(SPEED, place(SPEED, some, {}, "a"), some, {}, "a") for some in (chosen, hosts)]
    assert steps[0] <= steps[1] / (GROUP_GAIN if chosen != tuple(hosts) else 1) + 1e-12
