"""Which member guesses, what it loads, and what happens when it fails, leaves or is restarted."""

from __future__ import annotations

from typing import Any

from edgepp.cluster.membership import Membership
from edgepp.coordinator.draft_placement import DraftPlacement
from edgepp.coordinator.failure_backoff import MAX_FAILURES
from edgepp.coordinator.load_orders import Order
from edgepp.coordinator.load_tracker import REORDER_S, STALLED_S
from edgepp.coordinator.stage_hosts import StageHosts
from edgepp.placement.values import ModelSize, PlacementRequest
from edgepp.wire.messages.nodes import Load, Loaded, Loading, NotLoaded, Unload
from tests.builders.members import facts

HERE, MINI, AIR = "a" * 16, "b" * 16, "c" * 16
SIZE = ModelSize(
    layers=30, hidden=576, layer_bytes=2_000_000, ends_bytes=30_000_000, kv_bytes=1536, layer_flops=7_000_000
)


class Cluster:
    """Members, of which those in ``spare`` have no layers, and a clock that the test moves."""

    def __init__(self, model: str = "") -> None:
        self.members, self.spare, self.events = Membership(), set[str](), list[str]()
        self.drafts = DraftPlacement(
            self.members, lambda one: one.node in self.spare, model, lambda event: self.events.append(str(event))
        )
        self.now_s = 0.0

    def join(self, node: str, incarnation: int = 1, **changes: Any) -> None:
        self.members.closed(node) if self.members.get(node) else None
        news = facts(incarnation, name=node[:1], **changes)
        assert self.members.enrol(node, node, news, node.encode(), f"10.0.0.{node[0]}", self.now_s) == ""

    def after(self, seconds: float) -> list[Order]:
        self.now_s += seconds
        return self.drafts.step(self.now_s)

    def load(self) -> Load:
        """The only order that is due now."""
        [(_, order)] = self.after(0.1)
        assert isinstance(order, Load)
        return order

    def loaded(self, node: str, order: Load, port: int = 4000) -> bool:
        report = Loaded(order.plan_id, order.slot, port, 1, "onnx", "cpu", 1, 1, 1, 1)
        return self.drafts.report(node, report, self.now_s)

    def failed(self, node: str, order: Load, *, restarting: bool = False) -> bool:
        return self.drafts.report(
            node, NotLoaded(order.plan_id, order.slot, "out of memory", "", restarting), self.now_s
        )


def test_a_member_that_joined_to_draft_loads_its_model_and_then_guesses() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    assert cluster.after(0.1) == []
    cluster.join(MINI, draft="small")
    order = cluster.load()
    assert (order.model, order.drafts, order.start, order.stop) == ("small", True, 0, 0)
    assert cluster.drafts.endpoint is None
    assert cluster.drafts.report(MINI, Loading(order.plan_id, 0, 5, 10, "loading"), cluster.now_s)
    assert cluster.drafts.progress() == 0.5
    assert cluster.drafts.task(MINI) == "it is about to guess tokens with small"
    assert cluster.loaded(MINI, order)
    endpoint = cluster.drafts.endpoint
    assert endpoint is not None
    assert (str(endpoint.addresses[0]), endpoint.key) == ("10.0.0.b:4000", MINI)
    assert cluster.drafts.task(MINI) == "it guesses tokens with small"
    assert cluster.events == ["b guesses tokens with small"]
    assert cluster.after(10 * REORDER_S) == []


def test_reports_of_other_loads_nodes_and_slots_are_not_for_it() -> None:
    cluster = Cluster()
    cluster.join(MINI, draft="small")
    order = cluster.load()
    assert not cluster.loaded(HERE, order)
    assert not cluster.loaded(MINI, order._replace(plan_id=order.plan_id - 1))
    assert not cluster.loaded(MINI, order._replace(slot=1))
    assert cluster.drafts.endpoint is None


def test_a_lost_order_is_given_again_and_a_stalled_load_has_failed() -> None:
    cluster = Cluster()
    cluster.join(MINI, draft="small")
    order = cluster.load()
    assert cluster.after(REORDER_S) == [(MINI, order)]
    cluster.join(AIR, draft="other")
    for _ in range(int(STALLED_S) + 3):
        assert cluster.drafts.host.startswith(MINI) or cluster.now_s > STALLED_S
        cluster.drafts.report(MINI, Loading(order.plan_id, 0, 5, 10, "loading"), cluster.now_s)
        cluster.after(1.0)
    assert cluster.drafts.host.startswith(AIR)


def test_a_process_that_ended_is_waited_for_and_one_that_keeps_failing_gives_way() -> None:
    cluster = Cluster()
    cluster.join(MINI, draft="small")
    order = cluster.load()
    cluster.loaded(MINI, order)
    assert cluster.failed(MINI, order, restarting=True)
    assert cluster.drafts.endpoint is None
    assert cluster.drafts.failure == "out of memory"
    cluster.loaded(MINI, order, port=4001)
    assert cluster.drafts.endpoint is not None
    cluster.join(AIR, draft="other")
    for _ in range(MAX_FAILURES):
        cluster.failed(MINI, order)
        cluster.after(0.1)
    assert cluster.drafts.host.startswith(AIR)


def test_a_restarted_node_loads_again_and_one_that_left_is_replaced() -> None:
    cluster = Cluster()
    cluster.join(MINI, draft="small")
    first = cluster.load()
    cluster.loaded(MINI, first)
    cluster.members.left(MINI)
    assert cluster.drafts.endpoint is None
    cluster.join(MINI, incarnation=2, draft="small")
    second = cluster.load()
    assert second.plan_id > first.plan_id
    assert not cluster.loaded(MINI, first)
    assert cluster.loaded(MINI, second)
    cluster.members.left(MINI)
    cluster.join(AIR, draft="other")
    assert cluster.load().model == "other"


def test_a_member_without_layers_guesses_where_the_cluster_names_a_model() -> None:
    cluster = Cluster("small")
    cluster.join(HERE)
    cluster.join(MINI)
    assert cluster.after(0.1) == []
    cluster.spare.add(MINI)
    order = cluster.load()
    assert order.model == "small"
    cluster.loaded(MINI, order)
    cluster.join(AIR, draft="other")
    orders = dict(cluster.after(0.1))
    assert orders[MINI] == Unload(order.plan_id, 0)
    assert isinstance(orders[AIR], Load)
    assert orders[AIR].model == "other"


def test_a_member_that_gets_layers_drafts_no_more() -> None:
    cluster = Cluster("small")
    cluster.join(MINI)
    cluster.spare.add(MINI)
    cluster.loaded(MINI, cluster.load())
    cluster.spare.clear()
    assert cluster.after(0.1) == []  # the plan's order to load layers ends the process
    assert cluster.drafts.endpoint is None
    assert cluster.drafts.task(MINI) == ""


def test_a_drained_member_drafts_no_more() -> None:
    cluster = Cluster()
    cluster.join(MINI, draft="small")
    cluster.loaded(MINI, cluster.load())
    cluster.members.drain(MINI, draining=True)
    cluster.after(0.1)
    assert cluster.drafts.endpoint is None


def test_a_member_that_drafts_runs_no_layers() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI, draft="small")
    hosts = StageHosts(PlacementRequest(SIZE, context=1024, max_sequences=1), HERE).hosts(cluster.members.present)
    assert [host.node for host in hosts] == [HERE]
