"""Description of a cluster: nodes with memory and rates, links, and the placement of a model on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

from edgepp.layers import LayerRange
from edgepp.placement.place import place
from edgepp.placement.types import UNKNOWN_LINK, Links, LinkSpeed, PlacementRequest, Plan, StageHost, memory_needed
from edgepp.plan.machines import Machine, Stage


@dataclass(frozen=True)
class Node:
    """A machine and its memory that a model may use."""

    machine: Machine
    memory_bytes: int
    """Memory, shared evenly by the ``lanes`` of the machine, each of which is one stage process for placement."""
    source: str = ""
    """Source of the figures, for people."""
    pinned: LayerRange | None = None
    assumed: bool = False
    """Whether the memory is the usual size of the hardware, because no size was given."""

    @property
    def name(self) -> str:
        """Name of the node, unique in a cluster."""
        return self.machine.node


@dataclass(frozen=True)
class ClusterSpec:
    """Nodes, of which the first coordinates, and links by node names; ``default`` stands for links without a name."""

    nodes: tuple[Node, ...]
    named: Links = field(default_factory=dict)
    default: LinkSpeed = UNKNOWN_LINK

    @property
    def coordinator(self) -> Node:
        """The node that embeds, computes logits and samples."""
        return self.nodes[0]

    @property
    def links(self) -> dict[tuple[str, str], LinkSpeed]:
        """The link of each pair of nodes."""
        pairs = combinations([node.name for node in self.nodes], 2)
        return {(a, b): self.named.get((a, b)) or self.named.get((b, a)) or self.default for a, b in pairs}

    @property
    def hosts(self) -> tuple[StageHost, ...]:
        """The stage processes that `edgepp serve` would place layers on: one per lane of each node with memory."""
        return tuple(
            host
            for node in self.nodes
            if node.memory_bytes
            for host in StageHost(
                id=node.name,
                node=node.name,
                memory_bytes=node.memory_bytes,
                stream_bytes_per_s=node.machine.stream_bytes_per_s * node.machine.efficiency.stream,
                flops_per_s=node.machine.flops_per_s * node.machine.efficiency.flops,
                pinned=node.pinned,
                coordinator=node is self.coordinator,
                name=node.name,
            ).divided(node.machine.lanes)
        )

    def place(self, request: PlacementRequest) -> Plan:
        """The plan that `edgepp serve` would make over ``hosts``.

        Raises:
            PlanError: the nodes cannot hold the model; the hint says what would help.
        """
        return place(request, self.hosts, self.links, self.coordinator.name)

    def stages(self, plan: Plan) -> tuple[Stage, ...]:
        """Stages of ``plan`` in order, with the machines of this cluster."""
        machines = {node.name: node.machine for node in self.nodes}
        nodes = {host.id: host.node for host in self.hosts}
        return tuple(Stage(machines[nodes[host]], layers) for host, layers in plan.stages)

    def stage_memory(self, request: PlacementRequest, plan: Plan) -> list[tuple[int, int]]:
        """For each stage of ``plan``, the bytes that the stage needs and the bytes that its host offers."""
        hosts = {host.id: host for host in self.hosts}
        return [
            (memory_needed(request, len(layers), hosts[host].coordinator), hosts[host].memory_bytes)
            for host, layers in plan.stages
        ]

    def kv_room(self, request: PlacementRequest, plan: Plan) -> int:
        """Positions of all sequences together for which every stage has memory in addition to its weights."""
        stages = zip(plan.stages, self.stage_memory(dataclasses.replace(request, max_sequences=0), plan), strict=True)
        return min(
            (offered - needed) // (len(layers) * request.size.kv_bytes) for (_, layers), (needed, offered) in stages
        )

    def only(self, *names: str) -> ClusterSpec:
        """The cluster of only these nodes; the first of them coordinates."""
        return dataclasses.replace(self, nodes=tuple(node for node in self.nodes if node.name in names))

    def alone(self, name: str) -> ClusterSpec:
        """The cluster of one node, without its pinned range."""
        nodes = (dataclasses.replace(node, pinned=None) for node in self.nodes if node.name == name)
        return dataclasses.replace(self, nodes=tuple(nodes))

    def with_node(self, node: Node) -> ClusterSpec:
        """The cluster with one more node, on the default link."""
        return dataclasses.replace(self, nodes=(*self.nodes, node))

    def with_links(self, change: Callable[[LinkSpeed], LinkSpeed]) -> ClusterSpec:
        """The cluster with ``change`` applied to every link."""
        named = {pair: change(link) for pair, link in self.named.items()}
        return dataclasses.replace(self, named=named, default=change(self.default))

    def reaching(self, stream: float, flops: float) -> ClusterSpec:
        """The cluster whose machines reach these shares of memory bandwidth and of FLOP/s."""

        def changed(machine: Machine) -> Machine:
            reached = dataclasses.replace(machine.efficiency, stream=stream, kv=stream, flops=flops)
            return dataclasses.replace(machine, efficiency=reached)

        nodes = (dataclasses.replace(node, machine=changed(node.machine)) for node in self.nodes)
        return dataclasses.replace(self, nodes=tuple(nodes))

    def with_machine(self, name: str, change: Callable[[Machine], Machine]) -> ClusterSpec:
        """The cluster with ``change`` applied to one machine."""
        nodes = (
            dataclasses.replace(node, machine=change(node.machine)) if node.name == name else node
            for node in self.nodes
        )
        return dataclasses.replace(self, nodes=tuple(nodes))
