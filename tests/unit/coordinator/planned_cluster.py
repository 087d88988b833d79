"""A cluster of modelled nodes over a planner, with a clock that a test moves."""

from __future__ import annotations

from typing import Any

from edgepp.cluster.membership import Membership
from edgepp.coordinator.load_tracker import host_id
from edgepp.coordinator.planner import Planner
from edgepp.placement.values import ModelSize, PlacementRequest
from edgepp.wire.messages.nodes import Load, Loaded, NotLoaded, Unload
from tests.builders.members import facts

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

    def join(self, node: str, memory: int = 1_000_000_000, incarnation: int = 1, **changes: Any) -> None:
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
