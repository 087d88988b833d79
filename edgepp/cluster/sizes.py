"""What placement reckons with: a model's sizes, what hosts and links can do, and what a plan costs on them.

Pure: nothing here opens a socket, reads a clock or a file. Bytes, seconds, FLOP/s; layer ranges are half-open.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from edgepp.errors import PlanError
from edgepp.layers import LayerRange
from edgepp.model.cards import Shape

Policy = Literal["memory", "speed", "throughput"]

_FLOAT32 = 4
_SCALE_BITS = 2
"""Of a quantised key or value: its share of a float32 scale and bias for every 32."""
_WORKING_BYTES = 64_000_000
_WORKING_ROWS = 128 * 32
"""A prefill chunk of 128 tokens, and 32 activations of a hidden state's width that it has in flight."""


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@dataclass(frozen=True)
class ModelSize:
    """What placement needs to know of a model."""

    layers: int
    hidden: int
    """Width D of a hidden state."""
    layer_bytes: int
    """Stored bytes of one decoder layer."""
    ends_bytes: int
    """Stored bytes of embedding, final norm and output head."""
    kv_bytes: int
    """Bytes of one position's keys and values in one layer."""
    layer_flops: int
    """FLOPs a token a layer: two a weight."""

    @classmethod
    def of(cls, shape: Shape, kv_bits: int | None = None) -> ModelSize:
        """The sizes of a card, or of any shape.

        Keys and values are float32, as the CPU backends keep them, or have ``kv_bits`` and the scales of small groups.
        """
        values = 2 * shape.kv_heads * shape.head_size
        return cls(
            layers=shape.layers,
            hidden=shape.hidden,
            layer_bytes=shape.layer_bytes(),
            ends_bytes=shape.embedding_bytes() + shape.head_bytes(),
            kv_bytes=values * _FLOAT32 if kv_bits is None else values * (kv_bits + _SCALE_BITS) // 8,
            layer_flops=2 * sum(rows * columns for rows, columns in shape.layer_matrices().values()),
        )


@dataclass(frozen=True)
class Host:
    """One stage process that a node offers.

    Raises:
        PlanError: its numbers cannot be those of a machine.
    """

    id: str
    """Unique and stable."""
    node: str
    """The machine: between hosts of one node there is no network."""
    memory: int
    """Bytes that the model may use on it."""
    stream_bps: float
    """Measured bytes/s of weight streaming while decoding."""
    flops: float
    """Measured FLOP/s in prefill."""
    pinned: LayerRange | None = None
    coordinator: bool = False
    """The model's ends come out of its memory: set it for one host of the coordinator's machine."""
    name: str = ""
    """What people call it; the id where that is empty."""

    def __post_init__(self) -> None:
        if self.memory < 0 or not _positive(self.stream_bps) or not _positive(self.flops):
            raise PlanError(
                f"node {self} reports {self.memory} bytes, {self.stream_bps} bytes/s and {self.flops} FLOP/s,"
                " which no machine has",
                "start that node again, so that it is measured again",
            )

    def __str__(self) -> str:
        return self.name or self.id

    def decode_bps(self, size: ModelSize) -> float:
        """Bytes/s of weights in a decode step of one row: ``stream_bps``, or less where its arithmetic takes longer."""
        return min(self.stream_bps, self.flops * size.layer_bytes / max(1, size.layer_flops))

    def divided(self, slots: int) -> tuple[Host, ...]:
        """So many stage processes in place of one, which share its memory and rates evenly.

        Only the first is pinned, and only the coordinator's first holds the model's ends.
        """
        return tuple(
            replace(
                self,
                id=f"{self.id}/{slot}",
                memory=self.memory // slots,
                stream_bps=max(1.0, self.stream_bps / slots),
                flops=max(1.0, self.flops / slots),
                pinned=None if slot else self.pinned,
                coordinator=self.coordinator and not slot,
            )
            for slot in range(slots)
        )


@dataclass(frozen=True)
class LinkSpeed:
    """One direction of a connection between two nodes; both directions count as equal.

    Raises:
        PlanError: its numbers cannot be those of a network.
    """

    latency_s: float
    bytes_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0 and _positive(self.bytes_s)):
            raise PlanError(f"a link of {self.latency_s} s and {self.bytes_s} bytes/s cannot be")


Links = Mapping[tuple[str, str], LinkSpeed]
"""By (node id, node id), in either order."""

UNKNOWN_LINK = LinkSpeed(latency_s=0.0005, bytes_s=100e6)
"""What a link counts as before it is measured: an ordinary wired network."""


@dataclass(frozen=True)
class Want:
    """What is to be placed: a model, for ``slots`` sequences of ``context`` positions each."""

    size: ModelSize
    context: int
    slots: int
    policy: Policy = "memory"


@dataclass(frozen=True)
class Plan:
    """Which host runs which layers: (host id, range) in pipeline order, tiling the model."""

    stages: tuple[tuple[str, LayerRange], ...]


def memory_needed(want: Want, layers: int, ends: bool) -> int:
    """Bytes that a stage of so many layers takes, with the model's ends where it shares their machine.

    Weights count 1.25 times what is stored: backends add scales in float32 and packing (ONNX Runtime measured 1.2
    to 1.4 on 4-bit layers). KV caches count in full, and a constant and a prefill chunk as working space.
    """
    size = want.size
    weights = layers * size.layer_bytes + (size.ends_bytes if ends else 0)
    working = _WORKING_BYTES + _WORKING_ROWS * size.hidden * _FLOAT32
    return weights * 5 // 4 + layers * size.kv_bytes * want.context * want.slots + working


def most_layers(want: Want, host: Host) -> int:
    """The most layers, up to all of them, that the host's memory takes."""
    counts = range(1, want.size.layers + 1)
    return bisect_right(counts, host.memory, key=lambda n: memory_needed(want, n, host.coordinator))


def hop_s(want: Want, links: Links, start: str, end: str) -> float:
    """Seconds that one hidden state (1, D) in float32 takes from node to node; nothing within a node."""
    if start == end:
        return 0.0
    link = links.get((start, end)) or links.get((end, start)) or UNKNOWN_LINK
    return link.latency_s + want.size.hidden * _FLOAT32 / link.bytes_s


def token_s(want: Want, plan: Plan, hosts: Sequence[Host], links: Links, coordinator: str) -> float:
    """Predicted seconds of a decode step: each stage passes its weights, and N stages make N + 1 hops."""
    by_id = {host.id: host for host in hosts}
    weights = sum(
        len(layers) * want.size.layer_bytes / by_id[host].decode_bps(want.size) for host, layers in plan.stages
    )
    way = [coordinator, *(by_id[host].node for host, _ in plan.stages), coordinator]
    return weights + sum(hop_s(want, links, a, b) for a, b in pairwise(way))


def slowest_s(want: Want, plan: Plan, hosts: Sequence[Host]) -> float:
    """Predicted decode seconds of the slowest stage, which bounds the tokens/s of many sequences together."""
    by_id = {host.id: host for host in hosts}
    return max(len(layers) * want.size.layer_bytes / by_id[host].decode_bps(want.size) for host, layers in plan.stages)


def cost(want: Want, plan: Plan, hosts: Sequence[Host], links: Links, coordinator: str) -> float:
    """What the policy minimises: the fullest host's layers a byte of its memory, or seconds."""
    if want.policy == "speed":
        return token_s(want, plan, hosts, links, coordinator)
    if want.policy == "throughput":
        return slowest_s(want, plan, hosts)
    by_id = {host.id: host for host in hosts}
    return max(len(layers) / max(1, by_id[host].memory) for host, layers in plan.stages)
