"""Orders of one plan to the nodes: which layers each process loads, and which slots are emptied. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgepp.cluster.membership import Member
from edgepp.coordinator.load_tracker import host_id, split_host_id
from edgepp.coordinator.rank_loads import part_ids, rank_load
from edgepp.placement.values import Plan
from edgepp.wire.messages.nodes import Load, Unload

Order = tuple[str, Load | Unload]
"""A node id, and the message to send to that node."""


@dataclass(frozen=True)
class LoadOrders:
    """Load orders for the processes of a plan; a process is given by the index of its stage and by its rank."""

    plan: Plan
    plan_id: int
    model: str
    exact: bool
    kv_bits: int
    num_layers: int
    """Layers of the whole model."""

    def host(self, stage: int, rank: int) -> str:
        """Host id of the slot in which the process runs."""
        return part_ids(self.plan.stages[stage][0])[rank]

    def order(self, stage: int, rank: int) -> Order:
        """The node of the process, and what that node has to load."""
        return split_host_id(self.host(stage, rank))[0], self.load(stage, rank)

    def load(self, stage: int, rank: int) -> Load:
        """What the process has to load."""
        host, layers = self.plan.stages[stage]
        slot = split_host_id(self.host(stage, rank))[1]
        load = Load(self.plan_id, slot, self.model, layers.start, layers.stop, self.exact, self.kv_bits)
        return rank_load(load, host, rank, self.num_layers)


def unload_orders(plan_id: int, present: Iterable[Member], kept: Collection[str]) -> list[Order]:
    """Orders to empty every stage slot of the ``present`` members, except the slots with the host ids ``kept``."""
    return [
        (member.node, Unload(plan_id, slot))
        for member in present
        for slot in range(member.facts.stage_slots)
        if host_id(member.node, slot) not in kept
    ]
