"""Builders of a cluster from options or from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from edgepp.errors import UsageError
from edgepp.layer_range import LayerRange
from edgepp.placement.values import UNKNOWN_LINK, LinkSpeed
from edgepp.plan import hardware
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.machines import CPU_CHUNK, DATASHEET, DATASHEET_CPU, GPU_CHUNK, Machine
from edgepp.plan.quantities import parse_bytes, parse_bytes_per_s, parse_flops_per_s, parse_link

MEMORY_BYTES_PER_S = 50e9
"""Default rate of a node's memory: two channels of DDR4."""
FLOPS_PER_S = 500e9
"""Default FLOP/s of a node: a few cores of a laptop."""
USABLE_SHARE = 0.75
"""Default share of a node's memory that a model may use, if its hardware is not named."""
GPU_FLOPS_PER_S = 2e12
"""FLOP/s from which a described node counts as a GPU."""
_MAX_FILE_BYTES = 1 << 20
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
        ends = pair and either_way(*pair)
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
        with path.open("rb") as file:  # also a pipe, such as <(…) of a shell
            text = file.read(_MAX_FILE_BYTES + 1)
        if len(text) > _MAX_FILE_BYTES:
            raise ValueError("it is larger than 1 MiB")
        values = tomllib.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
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


def either_way(one: str, other: str) -> tuple[str, str]:
    """The same pair for a link and its way back."""
    return min(one, other), max(one, other)


def _share(text: str) -> float:
    """A share such as ``0.8`` or ``80%``."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UsageError(f"'{text}' is not a share of the memory", "write it like 0.8 or 80%")
    return value
