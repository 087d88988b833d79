"""The cluster that runs now, from the status of its coordinator: its nodes, links and sums as they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from edgepp.backend.device import GPUS
from edgepp.errors import RemoteProtocolError
from edgepp.layer_range import LayerRange
from edgepp.placement.groups import sum_cost
from edgepp.placement.values import UNKNOWN_LINK, Links, LinkSpeed, ModelSize, sum_over, sums_s
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.describe_cluster import FLOPS_PER_S, MEMORY_BYTES_PER_S, cluster_of, either_way
from edgepp.plan.machines import CPU_CHUNK, DATASHEET_CPU, GPU_CHUNK, MEASURED, Machine

_ONE_ROW = 1.1
"""Tokens per step up to which steps had one row each."""


def from_status(status: Mapping[str, Any], running: ModelSize | None = None) -> ClusterSpec:
    """The live cluster by the status of its coordinator, with measured rates, and measured links where there are any.

    ``running`` are the sizes of the model that the cluster runs, if the plan is for this model: its stages' measured
    times then replace the node's probe, which times layers of one width for all models.

    Raises:
        RemoteProtocolError: the status cannot be read.
        PlanError: a node reports figures that no machine has.
        UsageError: no node is present.
    """
    try:
        present = [node for node in status["nodes"] if node["state"] != "gone"]
        present.sort(key=lambda node: "coordinator" not in node["roles"])
        names = _unique([(str(node["name"]), str(node["node"])) for node in present])
        nodes = [_live_node(node, names[node["node"]]) for node in present]
        if running is not None:
            by_id = _live_sums(status, {node["node"]: str(node["node"]) for node in present})
            nodes = [_timed(node, live, status, running, by_id) for node, live in zip(nodes, present, strict=True)]
        links = _live_links(status, names)
        sums = _live_sums(status, names)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise RemoteProtocolError(f"the coordinator's status cannot be read: {error!r}") from error
    if nodes and "coordinator" not in present[0]["roles"]:
        coordinator = Machine(f"{status['coordinator']} (coordinator)", MEMORY_BYTES_PER_S, FLOPS_PER_S, DATASHEET_CPU)
        nodes.insert(0, Node(coordinator, 0, "holds no layers; its speed is assumed"))
    return replace(cluster_of(nodes, links), measured_sums=sums)


def _live_sums(status: Mapping[str, Any], names: Mapping[str, str]) -> dict[tuple[str, str], LinkSpeed]:
    """The measured cost of a sum over each pair of present nodes."""
    found = {}
    for pair in status.get("sums", ()):
        one, other = pair["node_ids"]
        if one in names and other in names and pair["latency_s"] is not None:
            ends = either_way(names[one], names[other])
            found[ends] = LinkSpeed(float(pair["latency_s"]), float(pair["bytes_per_s"]))
    return found


def _live_node(node: Mapping[str, Any], name: str) -> Node:
    """The node by its probe; stages that work at the same time share the rates."""
    gpu, slots = node["device"] in GPUS, int(node["stage_slots"])
    lanes = max(1, slots)
    machine = Machine(
        name,
        float(node["stream_bytes_per_s"]),
        float(node["flops_per_s"]),
        replace(MEASURED, overlap=float(gpu), half_s=float(node["half_s"])),
        lanes,
        GPU_CHUNK if gpu else CPU_CHUNK,
        contention=float(lanes),
    )
    pinned = LayerRange(*map(int, node["pinned"])) if node["pinned"] else None
    memory = int(node["memory_bytes"]) if slots else 0
    return Node(machine, memory, f"measured, {node['backend']} on {node['device']}", pinned)


def _timed(node: Node, live: Mapping[str, Any], status: Mapping[str, Any], size: ModelSize, sums: Links) -> Node:
    """The node by the times of its loaded stages, if all were timed, and the coordinator by those of the output head.

    ``sums`` has the cost of a sum over two nodes, by their ids.

    The times are those that the newest steps took, once there were some, without the reading of keys and values. The
    layers' overhead is the time of a decode step beyond reading the weights at the probe's rate, or beyond the
    arithmetic of one row if that takes longer. The output head has no such overhead.
    """
    trip, last = status.get("trip"), status["stages"][-1:]
    has_head = "coordinator" in live["roles"] and not any(stage.get("has_head") for stage in last)
    if has_head and trip and trip["tokens_per_step"] <= _ONE_ROW:
        reached = replace(node.machine.efficiency, head_s=float(trip["head_s"]))
        node = replace(node, machine=replace(node.machine, efficiency=reached))
    stages = [stage for stage in status["stages"] if live["node"] in _nodes_of(stage)]
    if not stages or not all(stage["decode_s"] and stage["prefill_tokens_per_s"] for stage in stages):
        return node
    machine = node.machine
    parts = [_Part.of(stage, str(live["node"]), machine, size, sums) for stage in stages]
    layers, step_s, token_s = (
        sum(values) for values in zip(*((p.layers, p.decode_s, p.token_s) for p in parts), strict=True)
    )
    kv_bytes = sum(part.positions for part in parts) * size.kv_bytes / machine.efficiency.kv
    stream_bytes_per_s = max(machine.stream_bytes_per_s, (layers * size.layer_bytes + kv_bytes) / step_s)
    decode_s = step_s - kv_bytes / stream_bytes_per_s
    weights_s, chunk = layers * size.layer_bytes / stream_bytes_per_s, machine.chunk
    row_s = (chunk * token_s - (decode_s - weights_s)) / chunk
    if row_s > weights_s:
        row_s = (chunk * token_s - decode_s) / (chunk - 1)
    row_s = min(max(row_s, decode_s / chunk), decode_s)
    overhead_s = decode_s - max(weights_s, row_s)
    machine = replace(
        machine,
        stream_bytes_per_s=stream_bytes_per_s,
        flops_per_s=layers * size.layer_flops / row_s,
        efficiency=replace(machine.efficiency, layer_s=overhead_s / layers),
        contention=1.0,  # each stage was timed with its own cores
    )
    return replace(node, machine=machine, source=f"{node.source} with this model")


class _Part(NamedTuple):
    """What one node has of a stage: as many layers, also a part of one, and the seconds that they take it alone."""

    layers: float
    positions: float
    """Positions of one layer whose keys and values a decode step reads."""
    decode_s: float
    token_s: float

    @classmethod
    def of(cls, stage: Mapping[str, Any], node: str, machine: Machine, size: ModelSize, sums: Links) -> _Part:
        """The part of the node with this id.

        Ranks wait for each other, so each takes the time of the stage, less that of sums and of a shared head.
        """
        layers, ranks = stage["layers"][1] - stage["layers"][0], stage.get("ranks") or ()
        decode_s, token_s, share = float(stage["decode_s"]), 1 / stage["prefill_tokens_per_s"], 1.0
        nodes = sorted(_nodes_of(stage))
        has_head = bool(stage.get("has_head") and "decode_position" in stage)
        if len(nodes) > 1:
            cost = sum_cost(sums, nodes) or sum_over(UNKNOWN_LINK)
            share = sum(rank["weight"] for rank in ranks if rank["node_id"] == node) / sum(r["weight"] for r in ranks)
            apart_s = [
                layers * (sums_s(size, cost, rows, len(nodes)) + 2 * machine.efficiency.half_s) / rows
                for rows in (1, machine.chunk)
            ]
            apart_s[0] += cost.latency_s if has_head else 0.0  # rank 0 waits for the others' part of the head
            decode_s, token_s = max(decode_s / 4, decode_s - apart_s[0]), max(token_s / 4, token_s - apart_s[1])
        if has_head:  # it is predicted without the overhead of layers: by the probe's rate, unless its steps are faster
            by_bytes_s = decode_s * size.head_bytes / (layers * size.layer_bytes + size.head_bytes)
            decode_s -= min(by_bytes_s, share * size.head_bytes / machine.stream_bytes_per_s)
        return cls(share * layers, share * layers * stage.get("decode_position", 0), decode_s, token_s)


def _nodes_of(stage: Mapping[str, Any]) -> set[str]:
    """Ids of the nodes that have a part of a stage."""
    return {str(rank["node_id"]) for rank in stage.get("ranks") or ()} or {str(stage["node_id"])}


def _live_links(status: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[tuple[str, str] | None, LinkSpeed]]:
    """Links from round trips between coordinator and nodes; measured hops and rates between stages take precedence."""
    found: dict[tuple[str, str], LinkSpeed] = {}
    coordinator_id = next((str(node["node"]) for node in status["nodes"] if "coordinator" in node["roles"]), "")
    for node in status["nodes"]:
        if coordinator_id in names and node["node"] in names and node["node"] != coordinator_id and node["rtt_s"] > 0:
            found[either_way(names[coordinator_id], names[node["node"]])] = LinkSpeed(
                node["rtt_s"] / 2, UNKNOWN_LINK.bytes_per_s
            )
    before, stages = coordinator_id, status["stages"]
    for stage in stages:
        after, rate = str(stage["node_id"]), stage.get("link_bytes_per_s")
        if before != after and before in names and after in names and rate:
            ways = 2 if stage is stages[-1] else 1  # the last stage's hop includes the way back
            found[either_way(names[before], names[after])] = LinkSpeed(stage["hop_s"] / ways, float(rate))
        before = after
    return list(found.items())


def _unique(nodes: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A name for each node id, with a part of the id if two machines share a name."""
    names = [name for name, _ in nodes]
    return {node: name if names.count(name) == 1 else f"{name} {node[:6]}" for name, node in nodes}
