from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.cluster.membership import GONE_S, Membership
from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.failure_backoff import FIRST_BAN_S, MAX_FAILURES, MAX_SLOT_RETRY_S, STEADY_S
from edgepp.coordinator.load_tracker import REORDER_S, STALLED_S, host_id
from edgepp.coordinator.planner import MAX_BUSY_S, QUIET_S, RESTLESS_S, START_WAIT_S, Planner
from edgepp.layers import LayerRange
from edgepp.placement.types import ModelSize, PlacementRequest, Policy
from edgepp.wire.messages.nodes import Load, Loaded, Loading, NotLoaded, Unload
from tests.builders.members import beat, facts

HERE, MINI, AIR = "a" * 16, "b" * 16, "c" * 16
SIZE = ModelSize(
    layers=30, hidden=576, layer_bytes=2_000_000, ends_bytes=30_000_000, kv_bytes=1536, layer_flops=7_000_000
)


class Cluster:
    """A planner and its members, with a clock that the test moves."""

    def __init__(self, expected_nodes: frozenset[str] = frozenset()) -> None:
        request = PlacementRequest(SIZE, context=1024, max_sequences=1)
        self.planner = Planner(
            request, "model", False, HERE, kv_bits=0, base_plan_id=1000, expected_nodes=expected_nodes
        )
        self.members = Membership()
        self.now_s = 0.0

    def join(self, node: str, memory: int = 1_000_000_000, incarnation: int = 1, **changes: int) -> None:
        news = facts(incarnation, name=node[:1], memory_bytes=memory, **changes)
        assert self.members.enrol(node, node, news, node.encode(), f"10.0.0.{node[0]}", self.now_s) == ""

    def after(self, seconds: float, *, idle: bool = True) -> list[tuple[str, Load | Unload]]:
        """Let time pass in small steps; the orders of the last decision that had any."""
        orders: list[tuple[str, Load | Unload]] = []
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 0.1
            orders = self.planner.decide(self.members, self.now_s, idle=idle) or orders
        return orders

    def load(self, orders: list[tuple[str, Load | Unload]]) -> None:
        for node, order in orders:
            if isinstance(order, Load):
                loaded = Loaded(order.plan_id, order.slot, 4000, 1, "onnx", "cpu", 1, 1, 1, 1)
                assert loaded.plan_id == self.planner.plan_id
                self.members.loaded(node, order.slot, loaded)
                self.planner.loads.loaded(host_id(node, order.slot), self.now_s)

    def fail(self, node: str, reason: str = "out of memory") -> None:
        """Report that the stage of this node ended."""
        report = NotLoaded(self.planner.plan_id, 0, reason, "")
        assert self.planner.is_expected(self.members, node, report)
        self.members.loaded(node, 0, None)
        self.planner.loads.failed(host_id(node, 0), reason, self.now_s)

    def until_complete(self, within_s: float) -> float:
        """Let every load that is ordered succeed; the seconds until the plan is complete."""
        began_s = self.now_s
        while not self.planner.complete(self.members):
            assert self.now_s - began_s < within_s, self.planner
            self.load(self.after(0.1))
        return self.now_s - began_s

    @property
    def ranges(self) -> dict[str, str]:
        return {member.node: str(layers) for member, _, layers, _ in self.planner.stages(self.members)}


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


def test_a_lost_order_is_sent_again() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    first = cluster.after(2.0)
    assert cluster.after(REORDER_S - 1.5) == []
    assert cluster.after(2.0) == first
    cluster.planner.loads.progress(
        host_id(HERE, 0), Loading(cluster.planner.plan_id, 0, 1, 2, "loading"), cluster.now_s
    )
    assert cluster.after(REORDER_S - 0.5) == []


def test_a_slot_that_fails_repeatedly_is_excluded() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    cluster.load(cluster.after(2.0))
    for _ in range(MAX_FAILURES):
        cluster.fail(MINI)
        cluster.until_complete(MAX_SLOT_RETRY_S)
    assert set(cluster.ranges) == {HERE}
    cluster.after(FIRST_BAN_S + QUIET_S)
    assert set(cluster.ranges) == {HERE, MINI}


def test_each_of_many_failures_in_a_long_run_costs_about_a_second() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.load(cluster.after(2.0))
    for _ in range(3 * MAX_FAILURES):
        cluster.fail(HERE)
        assert cluster.until_complete(3.0) < 1.5
        cluster.after(STEADY_S + 0.1)
    for _ in range(3 * MAX_FAILURES):
        cluster.fail(HERE)
        assert cluster.until_complete(3.0) < 1.5
        cluster.planner.answer_finished()


def test_the_only_host_that_can_hold_the_model_is_retried_with_growing_waits() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.load(cluster.after(2.0))
    waits = []
    for _ in range(8):
        cluster.fail(HERE)
        waits.append(round(cluster.until_complete(MAX_SLOT_RETRY_S + 1)))
    assert waits == [1, 2, 4, 8, 16, 16, 16, 16]
    assert "out of memory" in cluster.planner.reason
    assert cluster.planner.plan_version == 1


def test_a_restarted_node_is_free_of_its_failures() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.load(cluster.after(2.0))
    for _ in range(5):
        cluster.fail(HERE)
        cluster.until_complete(MAX_SLOT_RETRY_S + 1)
    cluster.fail(HERE)
    cluster.members.left(HERE)
    cluster.after(0.1)
    cluster.join(HERE, incarnation=2)
    cluster.planner.loads.remind(HERE, restarted=True)
    assert cluster.until_complete(QUIET_S + 0.5) < MAX_SLOT_RETRY_S


HISTORY = st.lists(
    st.tuples(
        st.sampled_from(["fail", "work", "answer", "leave", "come", "quiet"]),
        st.sampled_from([HERE, MINI, AIR]),
        st.floats(0.1, 30.0),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(HISTORY)
def test_after_the_last_failure_the_cluster_answers_again_in_bounded_time(
    history: list[tuple[str, str, float]],
) -> None:
    cluster = Cluster()
    for node in (HERE, MINI, AIR):
        cluster.join(node)
    cluster.load(cluster.after(2.0))
    for incarnation, (what, node, seconds) in enumerate(history, 2):
        member = cluster.members.get(node)
        assert member is not None
        if what == "fail" and cluster.planner.is_expected(
            cluster.members, node, NotLoaded(cluster.planner.plan_id, 0, "", "")
        ):
            cluster.fail(node)
        elif what == "work":
            cluster.load(cluster.after(seconds))
        elif what == "answer" and cluster.planner.complete(cluster.members):
            cluster.planner.answer_finished()
        elif what == "leave" and len(cluster.members.present) > 1:
            cluster.members.left(node)
        elif what == "come" and node not in {one.node for one in cluster.members.present}:
            cluster.join(node, incarnation=incarnation)
            cluster.planner.loads.remind(node, restarted=True)
        else:
            cluster.after(seconds)
    cluster.until_complete(MAX_SLOT_RETRY_S + REORDER_S + QUIET_S)


def test_a_report_counts_only_from_the_node_that_was_ordered_to_load() -> None:
    cluster = Cluster()
    cluster.join(HERE, 10_000_000_000)
    cluster.join(MINI, stage_slots=0, memory=0)
    orders = cluster.after(2.0)
    number = cluster.planner.plan_id

    def is_expected(node: str, report: Loading | Loaded | NotLoaded) -> bool:
        return cluster.planner.is_expected(cluster.members, node, report)

    loading = Loading(number, 0, 1, 2, "loading")
    loaded = Loaded(number, 0, 4000, 1, "onnx", "cpu", 1, 1, 1, 1)
    lost = NotLoaded(number, 0, "it feels like it", "")
    for report in (loading, loaded, lost):
        assert is_expected(HERE, report)
        assert not is_expected(MINI, report)
        assert not is_expected("nobody", report)
        assert not is_expected(HERE, report._replace(slot=1))
        assert not is_expected(HERE, report._replace(plan_id=number - 1))
        assert not is_expected(HERE, report._replace(plan_id=number + 1))
    cluster.load(orders)
    assert is_expected(HERE, lost)
    assert is_expected(HERE, loaded)
    assert not is_expected(HERE, loading)
    cluster.fail(HERE)
    for report in (loading, loaded, lost):
        assert not is_expected(HERE, report)


def test_a_stalled_load_moves_to_other_nodes() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    cluster.load([order for order in cluster.after(2.0) if order[0] == HERE])
    for done in range(20):
        cluster.planner.loads.progress(
            host_id(MINI, 0), Loading(cluster.planner.plan_id, 0, done, 100, "fetching"), cluster.now_s
        )
        cluster.after(STALLED_S / 4)
    assert set(cluster.ranges) == {HERE, MINI}
    cluster.load(cluster.after(STALLED_S * 3 / 4 + 2))
    assert set(cluster.ranges) == {HERE}
    assert cluster.planner.complete(cluster.members)


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
@settings(max_examples=60, deadline=None)
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


def test_a_silent_node_gets_no_new_layers_and_is_replaced() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    cluster.after(2.0)
    cluster.members.heard(HERE, beat(), 0, HERE.encode(), "10.0.0.a", GONE_S + 1)
    cluster.members.tick(GONE_S + 2)
    cluster.members.tick(GONE_S + 2)
    cluster.after(0.2)
    assert set(cluster.ranges) == {HERE}
