"""A planner whose nodes fail to load their layers, stall, or are lost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.cluster.membership import GONE_S
from edgepp.coordinator.failure_backoff import FIRST_BAN_S, MAX_FAILURES, MAX_SLOT_RETRY_S, STEADY_S
from edgepp.coordinator.link_bans import avoided_links
from edgepp.coordinator.load_tracker import REORDER_S, STALLED_S, host_id
from edgepp.coordinator.plan_timing import QUIET_S
from edgepp.wire.messages.nodes import Loaded, Loading, NotLoaded
from tests.builders.members import beat
from tests.builders.properties import examples
from tests.unit.coordinator.planned_cluster import AIR, HERE, MINI, SIZE, Cluster


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


def close(cluster: Cluster, sender: str, receiver: str) -> None:
    reason = f"the stage on node {sender[0]} cannot reach port 5701 of the stage on node {receiver[0]}"
    cluster.planner.link_bans.failed((sender, receiver), reason, cluster.now_s)


def order(cluster: Cluster) -> list[str]:
    return [member.node for member, *_ in cluster.planner.stages(cluster.members)]


def test_a_link_that_stages_cannot_open_is_avoided_by_another_order() -> None:
    cluster = Cluster()
    for node in (HERE, MINI, AIR):
        cluster.join(node)
    cluster.load(cluster.after(2.0))
    first, second, third = order(cluster)
    close(cluster, first, second)
    cluster.load(cluster.after(0.2))
    assert set(order(cluster)) == {HERE, MINI, AIR}
    assert (first, second) not in pairwise(order(cluster))
    assert "cannot reach port 5701 of the stage on node" in cluster.planner.reason
    (told,) = avoided_links(cluster.planner.avoided_links, cluster.members)
    assert (told["sender"], told["receiver"]) == (first[:1], second[:1]), "told while answers go another way"
    assert told["reason"] == cluster.planner.reason
    for sender, receiver in ((second, first), (second, third), (third, second)):
        close(cluster, sender, receiver)
        cluster.load(cluster.after(0.2))
    assert not {(first, second), (second, first), (second, third), (third, second)} & {*pairwise(order(cluster))}
    assert second not in order(cluster), "no order is left for a node that is cut off from both others"
    assert "of the stage on node" in cluster.planner.why_excluded(second)
    cluster.after(FIRST_BAN_S + QUIET_S)
    assert set(order(cluster)) == {HERE, MINI, AIR}
    assert cluster.planner.reason == ""
    assert cluster.planner.avoided_links == []


def test_a_closed_link_that_the_cluster_cannot_do_without_is_named_and_tried_again() -> None:
    cluster, half = Cluster(), SIZE.layer_bytes * SIZE.layers
    for node in (HERE, MINI):
        cluster.join(node, memory=half + 100_000_000)
    cluster.load(cluster.after(2.0))
    before, version = order(cluster), cluster.planner.plan_version
    assert set(before) == {HERE, MINI}
    for sender, receiver in ((HERE, MINI), (MINI, HERE)):
        close(cluster, sender, receiver)
        cluster.load(cluster.after(0.2))
    assert set(order(cluster)) == {HERE, MINI}
    assert cluster.planner.plan_version <= version + 1
    assert "the stage on node a cannot reach port 5701 of the stage on node b" in cluster.planner.reason
    cluster.planner.link_bans.forget(MINI)
    cluster.after(2.0)
    assert cluster.planner.reason == ""


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


def test_answers_need_not_wait_for_a_host_that_keeps_failing_where_no_other_can_take_its_layers() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.load(cluster.after(2.0))
    for failure in range(MAX_FAILURES):
        cluster.fail(HERE)
        cluster.after(0.1)
        failing = cluster.planner.certain_shortage(cluster.members)
        assert (failing is not None) == (failure == MAX_FAILURES - 1)
        if failing is None:
            cluster.until_complete(MAX_SLOT_RETRY_S)
    assert "out of memory" in str(failing)
    cluster.after(0.1)
    assert cluster.planner.certain_shortage(cluster.members) is failing
    cluster.until_complete(MAX_SLOT_RETRY_S)
    assert cluster.planner.certain_shortage(cluster.members) is None


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


def lose(cluster: Cluster, node: str) -> None:
    """Let a node end with all of its processes, as when its power fails; the others live on."""
    for member in cluster.members.present:
        incarnation, host = member.facts.incarnation, member.host
        cluster.members.heard(member.node, beat(incarnation), 0, member.route, host, cluster.now_s)
    cluster.members.closed(node, ended=True)
    cluster.members.tick(cluster.now_s)
    cluster.members.tick(cluster.now_s)


def test_a_machine_that_fails_whenever_it_gets_layers_is_left_out_for_longer_and_longer() -> None:
    """Its service starts it again each time, as after a drop of voltage: the others answer without it meanwhile."""
    cluster = Cluster()
    for node in (HERE, MINI):
        cluster.join(node)
    cluster.load(cluster.after(2.0))
    tries: list[float] = []
    for incarnation in range(2, 40):
        if MINI in cluster.ranges:
            tries.append(cluster.now_s)
        lose(cluster, MINI)
        cluster.load(cluster.after(2.0))
        assert set(cluster.ranges) == {HERE}
        cluster.join(MINI, incarnation=incarnation)
        cluster.planner.loads.remind(MINI, restarted=True)
        cluster.load(cluster.after(8.0))
    waits = [later - before for before, later in pairwise(tries)]
    assert len(tries) <= 3 + 4, "three tries, then one after each ban, which doubles"
    assert waits[2] >= FIRST_BAN_S
    assert waits[3] >= 2 * FIRST_BAN_S
    assert "it failed to run its layers: its node closed its connection" in cluster.planner.why_excluded(MINI)


def test_a_machine_that_is_lost_after_it_has_run_for_a_while_is_not_left_out() -> None:
    cluster = Cluster()
    for node in (HERE, MINI):
        cluster.join(node)
    cluster.load(cluster.after(2.0))
    for incarnation in range(2, 10):
        cluster.load(cluster.after(STEADY_S + 1))
        lose(cluster, MINI)
        cluster.load(cluster.after(2.0))
        cluster.join(MINI, incarnation=incarnation)
        cluster.planner.loads.remind(MINI, restarted=True)
        cluster.load(cluster.after(QUIET_S + 0.5))
        assert set(cluster.ranges) == {HERE, MINI}


HISTORY = st.lists(
    st.tuples(
        st.sampled_from(["fail", "work", "answer", "leave", "lose", "come", "quiet"]),
        st.sampled_from([HERE, MINI, AIR]),
        st.floats(0.1, 30.0),
    ),
    max_size=30,
)


@settings(max_examples=examples(40))
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
        elif what == "lose" and len(cluster.members.present) > 1:
            lose(cluster, node)
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
