"""Builders of a cluster: from options, from a TOML file, or from the status of a live coordinator."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from edgepp.backend.device import GPUS
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.layers import LayerRange
from edgepp.placement.types import UNKNOWN_LINK, LinkSpeed, ModelSize
from edgepp.plan import hardware
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.machines import CPU_CHUNK, DATASHEET, DATASHEET_CPU, GPU_CHUNK, MEASURED, Machine
from edgepp.plan.quantities import parse_bytes, parse_bytes_per_s, parse_flops_per_s, parse_link

MEMORY_BYTES_PER_S = 50e9
"""Default rate of a node's memory: two channels of DDR4."""
FLOPS_PER_S = 500e9
"""Default FLOP/s of a node: a few cores of a laptop."""
USABLE_SHARE = 0.75
"""Default share of a node's memory that a model may use, if its hardware is not named."""
GPU_FLOPS_PER_S = 2e12
"""FLOP/s from which a described node counts as a GPU."""
_KEYS = ("name", "hw", "mem", "usable", "bw", "flops", "layers")


def read_node(fields: Mapping[str, str], number: int) -> Node:
    """A node from its keys (``_KEYS``), all but ``mem`` or ``hw`` optional.

    Raises:
        UsageError: a key is unknown, a value cannot be read, or the memory is missing.
    """
    unknown = [key for key in fields if key not in _KEYS]
    if unknown:
        raise UsageError(f"a node has no '{unknown[0]}'", f"it has {', '.join(_KEYS)}")
    named = hardware.find(fields["hw"]) if "hw" in fields else None
    if named is None and "mem" not in fields:
        raise UsageError(f"the memory of node {number} is missing", "add mem=16GB, or hw= (see --list-hardware)")
    name = fields.get("name") or (named.name if named else f"node{number}")
    memory = parse_bytes(fields["mem"]) if "mem" in fields else (named.memory_bytes if named else 0)
    bytes_per_s = named.memory_bytes_per_s if named else MEMORY_BYTES_PER_S
    if "bw" in fields:
        bytes_per_s = parse_bytes_per_s(fields["bw"])
    flops_per_s = named.flops_per_s if named else FLOPS_PER_S
    if "flops" in fields:
        flops_per_s = parse_flops_per_s(fields["flops"])
    gpu = named.gpu if named else flops_per_s >= GPU_FLOPS_PER_S
    if "usable" in fields:
        usable = int(memory * _share(fields["usable"]))
    else:
        usable = named.usable_memory(memory) if named else int(memory * USABLE_SHARE)
    machine = Machine(
        name, bytes_per_s, flops_per_s, DATASHEET if gpu else DATASHEET_CPU, chunk=GPU_CHUNK if gpu else CPU_CHUNK
    )
    pinned = LayerRange.parse(fields["layers"]) if "layers" in fields else None
    assumed = "mem" not in fields
    source = f"{named.title}, {memory / 1e9:g} GB{' assumed' if assumed else ''}" if named else "described"
    return Node(machine, usable, source, pinned, assumed)


def read_nodes(tables: Sequence[Mapping[str, str]]) -> list[Node]:
    """Nodes from their keys; nodes without a name that have the same hardware are numbered: ``m2-1``, ``m2-2``.

    Raises:
        UsageError: as for ``read_node``.
    """
    nodes = [read_node(fields, number) for number, fields in enumerate(tables, 1)]
    names = [node.name for node in nodes]
    taken = set(names)
    for at, fields in enumerate(tables):
        if not fields.get("name") and names.count(names[at]) > 1:
            name = next(name for n in count(1) if (name := f"{names[at]}-{n}") not in taken)
            taken.add(name)
            nodes[at] = replace(nodes[at], machine=replace(nodes[at].machine, node=name))
    return nodes


def parse_node(text: str) -> dict[str, str]:
    """The keys of a node as ``--node`` gives it: ``name=mini,mem=16GB,bw=100GB/s`` or ``hw=m4-pro,mem=48GB``.

    Raises:
        UsageError: a part is not ``key=value``, or a key is given twice.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or key in fields:
            fault = "is given twice" if key in fields else "is not key=value"
            raise UsageError(f"'{part.strip()}' in node '{text}' {fault}", "write it like name=mini,mem=16GB")
        fields[key] = value
    return fields


def parse_named_link(text: str) -> tuple[tuple[str, str] | None, LinkSpeed]:
    """A link as ``--link`` gives it: ``1Gbit:0.3ms`` for all, or ``studio,mini=10Gbit:0.1ms`` for one pair.

    Raises:
        UsageError: ``text`` is not a link.
    """
    names, equals, speed = text.rpartition("=")
    if not equals:
        return None, parse_link(speed)
    pair = [name.strip() for name in names.split(",")]
    if len(pair) != 2 or not all(pair) or pair[0] == pair[1]:
        raise UsageError(f"'{names}' in link '{text}' is not a pair of nodes", "write it like studio,mini=1Gbit:0.3ms")
    return (pair[0], pair[1]), parse_link(speed)


def cluster_of(nodes: Iterable[Node], links: Iterable[tuple[tuple[str, str] | None, LinkSpeed]]) -> ClusterSpec:
    """The cluster of ``nodes`` and ``links``; the first node coordinates.

    Raises:
        UsageError: there is no node, two nodes share a name, or a link names an unknown node or is given twice.
    """
    found = tuple(nodes)
    names = [node.name for node in found]
    if not found:
        raise UsageError("no node is described", "add --node mem=16GB, once per machine")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two nodes are called {name}", "give each its own with name=")
    speeds: dict[tuple[str, str] | None, LinkSpeed] = {}
    for pair, link in links:
        unknown = [name for name in pair or () if name not in names]
        if unknown:
            raise UsageError(f"a link names {unknown[0]}, which is no node", f"the nodes are {', '.join(names)}")
        ends = pair and _either_way(*pair)
        if ends in speeds:
            raise UsageError(f"the link of {' and '.join(pair or ['all'])} is given twice", "give it once")
        speeds[ends] = link
    default = speeds.pop(None, UNKNOWN_LINK)
    return ClusterSpec(found, {ends: link for ends, link in speeds.items() if ends}, default)


def read_file(path: Path) -> ClusterSpec:
    """A cluster from a TOML file: ``[[nodes]]`` with the keys of ``--node``; ``[links]`` with ``default`` and pairs.

    Raises:
        UsageError: the file cannot be read, or describes no cluster.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read: {reason}", "see `edgepp plan --help` for what it holds") from error
    nodes, links = values.pop("nodes", []), values.pop("links", {})
    tables = isinstance(nodes, list) and all(isinstance(node, dict) for node in nodes)
    if values or not tables or not isinstance(links, dict):
        raise UsageError(f"{path} describes no cluster", "it holds [[nodes]] tables and one [links] table")
    texts = ((f"{pair}={speed}" if pair != "default" else str(speed)) for pair, speed in links.items())
    return cluster_of(
        read_nodes([{key: str(value) for key, value in node.items()} for node in nodes]),
        [parse_named_link(text) for text in texts],
    )


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
            nodes = [_timed(node, live["node"], status, running) for node, live in zip(nodes, present, strict=True)]
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
            ends = _either_way(names[one], names[other])
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


def _timed(node: Node, identity: str, status: Mapping[str, Any], size: ModelSize) -> Node:
    """The node by the times of its loaded stages, if all were timed.

    The times are those that the newest steps took, once there were some, without the reading of keys and values. The
    layers' overhead is the time of a decode step beyond reading the weights at the probe's rate, or beyond the
    arithmetic of one row if that takes longer. The output head has no such overhead.
    """
    stages = [stage for stage in status["stages"] if stage["node_id"] == identity]
    if any(stage.get("ranks") for stage in stages):
        return node  # their times are those of all machines that share the layers
    if not stages or not all(stage["decode_s"] and stage["prefill_tokens_per_s"] for stage in stages):
        return node
    layers = sum(stage["layers"][1] - stage["layers"][0] for stage in stages)
    machine = node.machine
    step_s = sum(stage["decode_s"] for stage in stages)
    positions = sum((stage["layers"][1] - stage["layers"][0]) * stage.get("decode_position", 0) for stage in stages)
    kv_bytes = positions * size.kv_bytes / machine.efficiency.kv
    stream_bytes_per_s = max(machine.stream_bytes_per_s, (layers * size.layer_bytes + kv_bytes) / step_s)
    decode_s = step_s - kv_bytes / stream_bytes_per_s
    token_s = sum(1 / stage["prefill_tokens_per_s"] for stage in stages)
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


def _live_links(status: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[tuple[str, str] | None, LinkSpeed]]:
    """Links from round trips between coordinator and nodes; measured hops and rates between stages take precedence."""
    found: dict[tuple[str, str], LinkSpeed] = {}
    coordinator_id = next((str(node["node"]) for node in status["nodes"] if "coordinator" in node["roles"]), "")
    for node in status["nodes"]:
        if coordinator_id in names and node["node"] in names and node["node"] != coordinator_id and node["rtt_s"] > 0:
            found[_either_way(names[coordinator_id], names[node["node"]])] = LinkSpeed(
                node["rtt_s"] / 2, UNKNOWN_LINK.bytes_per_s
            )
    before, stages = coordinator_id, status["stages"]
    for stage in stages:
        after, rate = str(stage["node_id"]), stage.get("link_bytes_per_s")
        if before != after and before in names and after in names and rate:
            ways = 2 if stage is stages[-1] else 1  # the last stage's hop includes the way back
            found[_either_way(names[before], names[after])] = LinkSpeed(stage["hop_s"] / ways, float(rate))
        before = after
    return list(found.items())


def _either_way(one: str, other: str) -> tuple[str, str]:
    """The same pair for a link and its way back."""
    return min(one, other), max(one, other)


def _unique(nodes: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A name for each node id, with a part of the id if two machines share a name."""
    names = [name for name, _ in nodes]
    return {node: name if names.count(name) == 1 else f"{name} {node[:6]}" for name, node in nodes}


def _share(text: str) -> float:
    """A share such as ``0.8`` or ``80%``."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UsageError(f"'{text}' is not a share of the memory", "write it like 0.8 or 80%")
    return value
