"""Description of a cluster: nodes with memory and rates, links, and the placement of a model on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

from edgepp.layer_range import LayerRange
from edgepp.placement.costs import memory_needed, plan_cost_s
from edgepp.placement.group_search import plans_with_group, with_groups
from edgepp.placement.groups import fractions, host_called, parts_of, sum_cost
from edgepp.placement.place import place
from edgepp.placement.values import UNKNOWN_LINK, Links, LinkSpeed, PlacementRequest, Plan, StageHost, sum_over
from edgepp.plan.machines import Machine, Stage, shared_machine


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
    measured_sums: Links | None = None
    """Cost of a sum over each pair of nodes that was measured; None: as expected of the links."""

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
                half_s=node.machine.efficiency.half_s,
            ).divided(node.machine.lanes)
        )

    @property
    def sums(self) -> Links:
        """Cost of a sum over two nodes, measured or expected."""
        if self.measured_sums is not None:
            return self.measured_sums
        return {pair: sum_over(link) for pair, link in self.links.items()}

    def place(self, request: PlacementRequest, tensor: int = 1) -> Plan:
        """The plan that `edgepp serve` would make over ``hosts``; with ``tensor``, so many of them share a stage.

        Raises:
            PlanError: the nodes cannot hold the model, or not share it; the hint says what would help.
        """
        name = self.coordinator.name
        if tensor == 1:
            return place(request, with_groups(request, self.hosts, self.links, self.sums, name), self.links, name)
        plans = list(plans_with_group(request, self.hosts, self.links, self.sums, name, tensor))
        speed = dataclasses.replace(request, policy="speed")
        return min(plans, key=lambda found: plan_cost_s(speed, found[0], found[1], self.links, name))[0]

    def stages(self, plan: Plan, request: PlacementRequest) -> tuple[Stage, ...]:
        """Stages of ``plan`` in order, with the machines of this cluster."""
        return tuple(self._stage(host, layers, request) for host, layers in plan.stages)

    def _stage(self, host: str, layers: LayerRange, request: PlacementRequest) -> Stage:
        machines = {node.name: node.machine for node in self.nodes}
        nodes = {one.id: one.node for one in self.hosts}
        parts = parts_of(host)
        members = [machines[nodes[part.host]] for part in parts]
        if len(parts) == 1:
            return Stage(members[0], layers)
        names = tuple(machine.node for machine in members)
        cost = sum_cost(self.sums, names) or sum_over(self.default)
        _, shares = fractions(request, [part.weight for part in parts])
        return Stage(shared_machine(members, shares, cost), layers, names)

    def stage_memory(self, request: PlacementRequest, plan: Plan) -> list[tuple[int, int]]:
        """For each stage of ``plan``, the bytes that the stage needs and the bytes that its host offers.

        Machines that share layers count as one process that holds as many layers as they do.
        """
        hosts = {host: host_called(request, self.hosts, host, self.sums) for host, _ in plan.stages}
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
