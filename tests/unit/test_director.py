from __future__ import annotations

from edgepp.cluster.membership import GONE_S, Membership
from edgepp.cluster.sizes import ModelSize, Want
from edgepp.layers import LayerRange
from edgepp.serve.director import AGAIN_S, GATHER_S, PATIENCE_S, QUIET_S, TRIES, Director
from edgepp.serve.standing import standings
from edgepp.wire.messages import Load, Loaded, NotLoaded, Unload
from tests.unit.test_membership import beat, facts

HERE, MINI, AIR = "a" * 16, "b" * 16, "c" * 16
SIZE = ModelSize(
    layers=30, hidden=576, layer_bytes=2_000_000, ends_bytes=30_000_000, kv_bytes=1536, layer_flops=7_000_000
)


class Cluster:
    """A director and its members, with a clock that the test moves."""

    def __init__(self, known: frozenset[str] = frozenset()) -> None:
        want = Want(SIZE, context=1024, slots=1)
        self.director = Director(want, "model", False, HERE, kv_bits=0, base=1000, known=known)
        self.members = Membership()
        self.now_s = 0.0

    def join(self, node: str, memory: int = 1_000_000_000, incarnation: int = 1, **changes: int) -> None:
        news = facts(incarnation, name=node[:1], memory=memory, **changes)
        assert self.members.enrol(node, node, news, node.encode(), f"10.0.0.{node[0]}", self.now_s) == ""

    def after(self, seconds: float, *, idle: bool = True) -> list[tuple[str, Load | Unload]]:
        """Let time pass in small steps; the orders of the last decision that had any."""
        orders: list[tuple[str, Load | Unload]] = []
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 0.1
            orders = self.director.decide(self.members, self.now_s, idle=idle) or orders
        return orders

    def load(self, orders: list[tuple[str, Load | Unload]]) -> None:
        for node, order in orders:
            if isinstance(order, Load):
                loaded = Loaded(order.plan, order.slot, 4000, 1, "onnx", "cpu", 1, 1, 1, 1)
                assert loaded.plan == self.director.number
                self.members.loaded(node, order.slot, loaded)

    @property
    def ranges(self) -> dict[str, str]:
        return {member.node: str(layers) for member, _, layers, _ in self.director.stages(self.members)}


def test_nodes_that_come_together_get_one_plan() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    assert cluster.after(QUIET_S / 2) == []
    cluster.join(MINI, 2_000_000_000)
    orders = cluster.after(QUIET_S + 0.3)
    assert cluster.ranges == {HERE: "0-9", MINI: "10-29"}
    assert cluster.director.count == 1
    assert not cluster.director.complete(cluster.members)
    cluster.load(orders)
    assert cluster.director.complete(cluster.members)


def test_a_better_plan_waits_for_answers_but_not_for_ever() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.load(cluster.after(2.0))
    cluster.join(MINI)
    assert cluster.after(PATIENCE_S - 2, idle=False) == []
    assert cluster.director.count == 1
    cluster.after(3.0, idle=False)
    assert cluster.director.count == 2
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
    assert sum(layers.stop - layers.start for _, _, layers, _ in cluster.director.stages(cluster.members)) == 30
    assert before != cluster.ranges


def test_a_start_waits_a_moment_for_the_members_it_knows() -> None:
    cluster = Cluster(known=frozenset({MINI}))
    cluster.join(HERE)
    assert cluster.after(QUIET_S + 1) == []
    cluster.join(MINI)
    cluster.after(QUIET_S + 0.3)
    assert set(cluster.ranges) == {HERE, MINI}
    alone = Cluster(known=frozenset({MINI}))
    alone.join(HERE)
    alone.after(GATHER_S + 0.3)
    assert set(alone.ranges) == {HERE}


def test_what_does_not_fit_is_said_and_a_running_plan_stays() -> None:
    cluster = Cluster()
    cluster.join(HERE, memory=100_000_000)
    assert cluster.after(2.0) == []
    assert "missing" in cluster.director.reason or "fit" in cluster.director.reason
    cluster.join(MINI)
    cluster.load(cluster.after(2.0))
    cluster.join(AIR, start=90, stop=99)
    cluster.after(2.0)
    assert cluster.director.complete(cluster.members)
    assert cluster.director.reason


def test_a_pin_that_cannot_be_leaves_out_its_node_alone() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    cluster.join(AIR, start=25, stop=31)
    cluster.after(2.0)
    assert cluster.ranges == {HERE: "0-14", MINI: "15-29"}
    cluster.members.left(MINI)
    cluster.after(2.0)
    assert cluster.ranges == {HERE: "0-29"}
    assert "the model has only layers 0-29" in cluster.director.reason
    assert "only layers 0-29" in cluster.director.trouble(AIR)
    assert not cluster.director.trouble(HERE)


def test_each_node_is_told_its_layers_or_why_it_has_none() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    assert standings(cluster.director, cluster.members) == {HERE: {"layers": [], "reason": ""}}
    cluster.join(MINI, memory=50_000_000)
    cluster.join(AIR, start=25, stop=31)
    cluster.join("d" * 16, slots=0)
    cluster.after(2.0)
    told = standings(cluster.director, cluster.members)
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
    assert standings(cluster.director, cluster.members)[MINI]["reason"].startswith("the others hold all layers")


def test_a_load_that_got_lost_is_ordered_again() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    first = cluster.after(2.0)
    assert cluster.after(AGAIN_S - 1.5) == []
    assert cluster.after(2.0) == first
    cluster.director.progress(HERE, 0, cluster.now_s)
    assert cluster.after(AGAIN_S - 0.5) == []


def test_a_slot_that_fails_again_and_again_is_left_out() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    cluster.load(cluster.after(2.0))
    for _ in range(TRIES):
        failure = NotLoaded(cluster.director.number, 0, "out of memory", "")
        cluster.members.loaded(MINI, 0, None)
        cluster.director.failed(MINI, failure, cluster.now_s)
        cluster.after(1.2)
    assert set(cluster.ranges) == {HERE}


def test_a_pinned_range_is_kept() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI, start=25, stop=30)
    cluster.after(2.0)
    assert cluster.ranges == {HERE: "0-24", MINI: "25-29"}
    assert LayerRange(25, 30) == cluster.director.stages(cluster.members)[1][2]


def test_a_sleeper_is_given_nothing_new_and_then_replaced() -> None:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    cluster.after(2.0)
    cluster.members.heard(HERE, beat(), 0, HERE.encode(), "10.0.0.a", GONE_S + 1)
    cluster.members.tick(GONE_S + 2)
    cluster.members.tick(GONE_S + 2)
    cluster.after(0.2)
    assert set(cluster.ranges) == {HERE}
