"""A cluster on paper: nodes with memory and rates, links between them, and how a model is laid out on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

from edgepp.cluster.placement import Host, LinkSpeed, Plan, Want, memory_needed, place
from edgepp.cluster.sizes import UNKNOWN_LINK, Links
from edgepp.layers import LayerRange
from edgepp.plan.machines import Machine, Stage


@dataclass(frozen=True)
class Node:
    """A machine, and the memory on it that a model may use."""

    machine: Machine
    memory: int
    """Bytes, which the ``lanes`` of its machine share evenly: each is one stage process to placement."""
    source: str = ""
    """Where its figures come from."""
    pinned: LayerRange | None = None
    assumed: bool = False
    """Whether its memory was not given, and is the smallest that is sold."""

    @property
    def name(self) -> str:
        """What people call it; unique in a cluster."""
        return self.machine.node


@dataclass(frozen=True)
class Cluster:
    """Nodes, of which the first coordinates, and links by their names; ``default`` stands for those not named."""

    nodes: tuple[Node, ...]
    named: Links = field(default_factory=dict)
    default: LinkSpeed = UNKNOWN_LINK

    @property
    def coordinator(self) -> Node:
        """The node that embeds, makes logits and samples."""
        return self.nodes[0]

    @property
    def links(self) -> dict[tuple[str, str], LinkSpeed]:
        """Every pair of nodes and the link between them."""
        pairs = combinations([node.name for node in self.nodes], 2)
        return {(a, b): self.named.get((a, b)) or self.named.get((b, a)) or self.default for a, b in pairs}

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The stage processes that `edgepp serve` would lay layers on: one a lane of each node that has memory."""
        return tuple(
            host
            for node in self.nodes
            if node.memory
            for host in Host(
                id=node.name,
                node=node.name,
                memory=node.memory,
                stream_bytes_per_s=node.machine.stream_bytes_per_s * node.machine.efficiency.stream,
                flops_per_s=node.machine.flops_per_s * node.machine.efficiency.flops,
                pinned=node.pinned,
                coordinator=node is self.coordinator,
                name=node.name,
            ).divided(node.machine.lanes)
        )

    def place(self, want: Want) -> Plan:
        """The plan that `edgepp serve` would make over ``hosts``.

        Raises:
            PlanError: the nodes cannot hold the model; with what would help.
        """
        return place(want, self.hosts, self.links, self.coordinator.name)

    def stages(self, plan: Plan) -> tuple[Stage, ...]:
        """The plan's stages, in order, on this cluster's machines."""
        machines = {node.name: node.machine for node in self.nodes}
        nodes = {host.id: host.node for host in self.hosts}
        return tuple(Stage(machines[nodes[host]], layers) for host, layers in plan.stages)

    def memory(self, want: Want, plan: Plan) -> list[tuple[int, int]]:
        """Of each stage of a plan, the bytes that it takes and those that it may take."""
        hosts = {host.id: host for host in self.hosts}
        return [
            (memory_needed(want, len(layers), hosts[host].coordinator), hosts[host].memory)
            for host, layers in plan.stages
        ]

    def kv_room(self, want: Want, plan: Plan) -> int:
        """Positions, of all sequences together, for which every stage has memory beside its weights."""
        stages = zip(plan.stages, self.memory(dataclasses.replace(want, slots=0), plan), strict=True)
        return min((has - takes) // (len(layers) * want.size.kv_bytes) for (_, layers), (takes, has) in stages)

    def only(self, *names: str) -> Cluster:
        """These nodes alone; the first of them that is left coordinates."""
        return dataclasses.replace(self, nodes=tuple(node for node in self.nodes if node.name in names))

    def alone(self, name: str) -> Cluster:
        """One node by itself, free to hold all layers."""
        nodes = (dataclasses.replace(node, pinned=None) for node in self.nodes if node.name == name)
        return dataclasses.replace(self, nodes=tuple(nodes))

    def with_node(self, node: Node) -> Cluster:
        """One more node, on the default link."""
        return dataclasses.replace(self, nodes=(*self.nodes, node))

    def with_links(self, change: Callable[[LinkSpeed], LinkSpeed]) -> Cluster:
        """Every link changed alike."""
        named = {pair: change(link) for pair, link in self.named.items()}
        return dataclasses.replace(self, named=named, default=change(self.default))

    def reaching(self, stream: float, flops: float) -> Cluster:
        """Every machine reaching these shares of its rates: of memory bandwidth, of FLOP/s."""

        def changed(machine: Machine) -> Machine:
            reached = dataclasses.replace(machine.efficiency, stream=stream, kv=stream, flops=flops)
            return dataclasses.replace(machine, efficiency=reached)

        nodes = (dataclasses.replace(node, machine=changed(node.machine)) for node in self.nodes)
        return dataclasses.replace(self, nodes=tuple(nodes))

    def with_machine(self, name: str, change: Callable[[Machine], Machine]) -> Cluster:
        """One node's machine changed."""
        nodes = (
            dataclasses.replace(node, machine=change(node.machine)) if node.name == name else node
            for node in self.nodes
        )
        return dataclasses.replace(self, nodes=tuple(nodes))
