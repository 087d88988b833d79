"""A planner with nodes that ask for layers of their own, or tell absurd facts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.coordinator.assignments import node_assignments
from edgepp.layer_range import LayerRange
from edgepp.placement.values import Policy
from edgepp.wire.messages.nodes import Load
from tests.builders.properties import examples
from tests.unit.coordinator.planned_cluster import AIR, HERE, MINI, Cluster


def test_an_impossible_pin_excludes_only_its_own_node() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    cluster.join(AIR, start=25, stop=31)
    cluster.after(2.0)
    assert cluster.ranges == {HERE: "0-14", MINI: "15-29"}
    cluster.members.left(MINI)
    cluster.after(2.0)
    assert cluster.ranges == {HERE: "0-29"}
    assert "the model has only layers 0-29" in cluster.planner.reason
    assert "only layers 0-29" in cluster.planner.why_excluded(AIR)
    assert not cluster.planner.why_excluded(HERE)


def test_a_pinned_range_is_kept() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI, start=25, stop=30)
    cluster.after(2.0)
    assert cluster.ranges == {HERE: "0-24", MINI: "25-29"}
    assert LayerRange(25, 30) == cluster.planner.stages(cluster.members)[1][2]


def test_an_impossible_pin_is_reported_and_does_not_prevent_a_plan() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI, start=90, stop=99)
    cluster.join(AIR, memory=70_000_000, start=0, stop=30)
    cluster.load(cluster.after(2.0))
    assert cluster.ranges == {HERE: "0-29"}
    assert cluster.planner.complete(cluster.members)
    assert "layers 0-29 do not fit c" in cluster.planner.reason


def test_of_two_overlapping_pins_the_earlier_one_counts() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(AIR, start=15, stop=30)
    cluster.load(cluster.after(2.0))
    before, count = cluster.ranges, cluster.planner.plan_version
    cluster.join(MINI, start=20, stop=30)  # an id before AIR's: the order of arrival counts, not that of ids
    assert cluster.after(2.0) == []
    assert (cluster.ranges, cluster.planner.plan_version) == (before, count)
    assert cluster.planner.complete(cluster.members)
    why = "layers 20-29 are pinned twice: c came first and keeps 15-29, so b, which is to hold 20-29, is spare"
    told = node_assignments(cluster.planner, cluster.members)
    assert told[MINI] == {"layers": [], "reason": f"{why}; restart b with other --layers, or without"}
    assert why in cluster.planner.reason
    cluster.members.left(AIR)
    cluster.after(2.0)
    assert cluster.ranges[MINI] == "20-29"
    cluster.join(AIR, incarnation=2, start=15, stop=30)
    cluster.after(2.0)
    assert AIR not in cluster.ranges
    assert "b came first and keeps 20-29" in cluster.planner.why_excluded(AIR)


def test_a_pin_that_leaves_no_node_for_the_rest_does_not_prevent_a_plan() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.load(cluster.after(2.0))
    cluster.join(MINI, start=10, stop=20)  # one free node is left for two gaps
    cluster.after(2.0)
    assert cluster.ranges == {HERE: "0-29"}
    assert cluster.planner.complete(cluster.members)
    assert "its layers 10-19 leave no plan: no node is left for layers 0-9, 20-29" in cluster.planner.why_excluded(MINI)
    assert "no node is left" in node_assignments(cluster.planner, cluster.members)[MINI]["reason"]
    cluster.join(AIR)
    cluster.after(2.0)
    assert cluster.ranges[MINI] == "10-19"
    assert not cluster.planner.reason
    cluster.members.left(AIR)
    cluster.after(0.2)
    assert cluster.ranges == {HERE: "0-29"}


@given(st.lists(st.tuples(st.integers(0, 33), st.integers(1, 33), st.integers(0, 3)), min_size=1, max_size=6))
@settings(max_examples=examples(60))
def test_no_pins_prevent_a_plan_of_a_node_that_can_hold_the_model(pins: list[tuple[int, int, int]]) -> None:
    cluster = Cluster()
    cluster.join(HERE)
    for number, (start, length, slots) in enumerate(pins):
        node = f"{number + 1:016x}"
        cluster.join(node, start=start, stop=start + length, stage_slots=slots)
    cluster.until_complete(10.0)
    told = node_assignments(cluster.planner, cluster.members)
    assert all(bool(part["layers"]) != bool(part["reason"]) for part in told.values()), told


@pytest.mark.parametrize("memory", [0, 1, (1 << 48) - 1])
@pytest.mark.parametrize("rate", [0, (1 << 48) - 1])
@pytest.mark.parametrize("policy", ["memory", "speed", "throughput"])
def test_absurd_facts_of_one_node_do_not_keep_the_others_from_a_plan(memory: int, rate: int, policy: Policy) -> None:
    """A node without memory is spare; one that claims the maximum and fails every load is replaced."""
    cluster = Cluster()
    cluster.planner.request = replace(cluster.planner.request, policy=policy)
    cluster.join(HERE)
    cluster.join(MINI, memory=memory, stream_bytes_per_s=rate, flops_per_s=rate)
    began_s = cluster.now_s
    while not cluster.planner.complete(cluster.members):
        assert cluster.now_s - began_s < 60, cluster.planner
        for node, order in cluster.after(0.1):
            if node == MINI and isinstance(order, Load):
                cluster.fail(MINI)
            else:
                cluster.load([(node, order)])
    assert cluster.ranges == {HERE: "0-29"}
    assert node_assignments(cluster.planner, cluster.members)[MINI]["reason"]
