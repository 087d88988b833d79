"""Which plan the planner makes, and when."""

from __future__ import annotations

from edgepp.cluster.membership import GONE_S
from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.plan_timing import MAX_BUSY_S, QUIET_S, RESTLESS_S, START_WAIT_S
from edgepp.wire.messages.nodes import Load
from tests.builders.members import beat
from tests.unit.coordinator.planned_cluster import AIR, HERE, MINI, Cluster


def test_nodes_that_come_together_get_one_plan() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    assert cluster.after(QUIET_S / 2) == []
    cluster.join(MINI, 2_000_000_000)
    orders = cluster.after(QUIET_S + 0.3)
    assert cluster.ranges == {HERE: "0-9", MINI: "10-29"}
    assert cluster.planner.plan_version == 1
    assert not cluster.planner.complete(cluster.members)
    cluster.load(orders)
    assert cluster.planner.complete(cluster.members)


def test_a_better_plan_waits_for_answers_but_not_for_ever() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.load(cluster.after(2.0))
    cluster.join(MINI)
    assert cluster.after(MAX_BUSY_S - 2, idle=False) == []
    assert cluster.planner.plan_version == 1
    cluster.after(3.0, idle=False)
    assert cluster.planner.plan_version == 2
    assert cluster.ranges == {HERE: "0-14", MINI: "15-29"}


def test_a_node_that_is_gone_is_replaced_at_once_and_the_others_keep_what_they_can() -> None:
    cluster = Cluster()
    for node in (HERE, MINI, AIR):
        cluster.join(node)
    cluster.load(cluster.after(2.0))
    before = cluster.ranges
    cluster.members.left(AIR)
    orders = cluster.after(0.2)
    assert set(cluster.ranges) == {HERE, MINI}
    assert {node for node, order in orders if isinstance(order, Load)} <= {HERE, MINI}
    assert sum(layers.stop - layers.start for _, _, layers, _ in cluster.planner.stages(cluster.members)) == 30
    assert before != cluster.ranges


def test_a_new_coordinator_waits_for_the_nodes_that_it_expects() -> None:
    cluster = Cluster(expected_nodes=frozenset({MINI}))
    cluster.join(HERE)
    assert cluster.after(QUIET_S + 1) == []
    cluster.join(MINI)
    cluster.after(QUIET_S + 0.3)
    assert set(cluster.ranges) == {HERE, MINI}
    alone = Cluster(expected_nodes=frozenset({MINI}))
    alone.join(HERE)
    alone.after(START_WAIT_S + 0.3)
    assert set(alone.ranges) == {HERE}


def test_a_restarted_coordinator_waits_longer_while_nodes_still_hold_layers_of_the_earlier_start() -> None:
    """Else the layers of a node that comes back late would move, and move back."""
    cluster = Cluster(expected_nodes=frozenset({MINI, AIR}))
    cluster.join(HERE)
    cluster.join(AIR)
    held = beat(free_memory_bytes=400_000_000)
    assert cluster.members.heard(AIR, held, 0, AIR.encode(), "10.0.0.c", cluster.now_s)
    assert cluster.after(START_WAIT_S + 1) == []
    cluster.join(MINI)
    cluster.after(QUIET_S + 0.3)
    assert set(cluster.ranges) == {HERE, MINI, AIR}
    late = Cluster(expected_nodes=frozenset({MINI, AIR}))
    late.join(HERE)
    late.join(AIR)
    assert late.members.heard(AIR, held, 0, AIR.encode(), "10.0.0.c", late.now_s)
    late.after(GONE_S + 0.3)
    assert set(late.ranges) == {HERE, AIR}


def test_a_shortage_is_reported_and_a_running_plan_stays() -> None:
    cluster = Cluster()
    cluster.join(HERE, memory=100_000_000)
    assert cluster.after(2.0) == []
    assert "missing" in cluster.planner.reason or "fit" in cluster.planner.reason
    cluster.join(MINI)
    cluster.load(cluster.after(2.0))
    cluster.join(AIR, start=90, stop=99)
    cluster.after(2.0)
    assert cluster.planner.complete(cluster.members)
    assert cluster.planner.reason


def test_each_node_is_told_its_layers_or_why_it_has_none() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    assert node_assignments(cluster.planner, cluster.members) == {HERE: {"layers": [], "reason": ""}}
    cluster.join(MINI, memory=50_000_000)
    cluster.join(AIR, start=25, stop=31)
    cluster.join("d" * 16, stage_slots=0)
    cluster.after(2.0)
    told = node_assignments(cluster.planner, cluster.members)
    assert told[HERE] == {"layers": [[0, 30]], "reason": ""}
    assert "one layer needs" in told[MINI]["reason"]
    assert "offers 50 MB" in told[MINI]["reason"]
    assert "only layers 0-29" in told[AIR]["reason"]
    assert told["d" * 16]["reason"] == "it offers no stage process"


def test_a_node_that_is_not_needed_stands_by() -> None:
    cluster = Cluster()
    cluster.join(HERE, start=0, stop=30)
    cluster.join(MINI)
    cluster.after(2.0)
    assert node_assignments(cluster.planner, cluster.members)[MINI]["reason"].startswith("the others hold all layers")


def test_a_member_that_never_stops_changing_does_not_prevent_a_plan() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    began_s = cluster.now_s
    while cluster.planner.plan is None:
        cluster.join(MINI, 1_000_000_000 + int(cluster.now_s * 10) % 2)
        cluster.after(QUIET_S / 4)
        assert cluster.now_s - began_s < RESTLESS_S + 1


def test_a_shortage_is_certain_once_all_expected_nodes_are_present() -> None:
    cluster = Cluster(expected_nodes=frozenset({HERE, MINI}))
    cluster.join(HERE, memory=100_000_000)
    cluster.after(START_WAIT_S + 1)
    assert cluster.planner.shortage is not None
    assert cluster.planner.certain_shortage(cluster.members) is None
    cluster.join(MINI, memory=100_000_000)
    cluster.after(QUIET_S / 2)
    assert cluster.planner.certain_shortage(cluster.members) is None
    cluster.after(QUIET_S)
    lacking = cluster.planner.certain_shortage(cluster.members)
    assert lacking is not None
    assert "does not fit" in str(lacking)
    cluster.join(AIR)
    cluster.after(QUIET_S + 0.3)
    assert cluster.planner.certain_shortage(cluster.members) is None
