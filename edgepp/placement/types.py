"""What placement computes with: a model's sizes, what hosts and links can do, and what a plan costs on them.

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
from edgepp.model.catalogue.cards import Shape, token_flops

Policy = Literal["memory", "speed", "throughput"]

FLOAT32_BYTES = 4
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
    """FLOPs of one token in one layer, two per weight."""

    @classmethod
    def of(cls, shape: Shape, kv_bits: int | None = None) -> ModelSize:
        """The sizes of a card, or of any shape.

        Keys and values are float32, as the CPU backends keep them, or have ``kv_bits`` and the scales of small groups.
        """
        numbers = shape.kv_numbers()
        return cls(
            layers=shape.layers,
            hidden=shape.hidden,
            layer_bytes=shape.layer_bytes(),
            ends_bytes=shape.embedding_bytes() + shape.head_bytes(),
            kv_bytes=numbers * FLOAT32_BYTES if kv_bits is None else numbers * (kv_bits + _SCALE_BITS) // 8,
            layer_flops=token_flops(shape.layer_weights()),
        )

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of the whole model."""
        return self.layers * self.layer_bytes + self.ends_bytes

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        return self.layers * self.kv_bytes

    def hidden_bytes(self, rows: int, item_bytes: int = FLOAT32_BYTES) -> int:
        """Bytes of hidden states (rows, D) on one hop."""
        return rows * self.hidden * item_bytes


@dataclass(frozen=True)
class StageHost:
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
    stream_bytes_per_s: float
    """Measured bytes/s of weight streaming while decoding."""
    flops_per_s: float
    """Measured FLOP/s in prefill."""
    pinned: LayerRange | None = None
    coordinator: bool = False
    """The model's ends come out of its memory: set it for one host of the coordinator's machine."""
    name: str = ""
    """What people call it; the id where that is empty."""

    def __post_init__(self) -> None:
        if self.memory < 0 or not _positive(self.stream_bytes_per_s) or not _positive(self.flops_per_s):
            raise PlanError(
                f"node {self} reports {self.memory} bytes, {self.stream_bytes_per_s} bytes/s and"
                f" {self.flops_per_s} FLOP/s, which no machine has",
                "start that node again, so that it is measured again",
            )

    def __str__(self) -> str:
        return self.name or self.id

    def decode_bytes_per_s(self, size: ModelSize) -> float:
        """Bytes/s of weights in a decode step of one row: the rate of reading, or less if arithmetic takes longer."""
        return min(self.stream_bytes_per_s, self.flops_per_s * size.layer_bytes / max(1, size.layer_flops))

    def divided(self, slots: int) -> tuple[StageHost, ...]:
        """So many stage processes in place of one, which share its memory and rates evenly.

        Only the first is pinned, and only the coordinator's first holds the model's ends.
        """
        return tuple(
            replace(
                self,
                id=f"{self.id}/{slot}",
                memory=self.memory // slots,
                stream_bytes_per_s=max(1.0, self.stream_bytes_per_s / slots),
                flops_per_s=max(1.0, self.flops_per_s / slots),
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
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0 and _positive(self.bytes_per_s)):
            raise PlanError(f"a link of {self.latency_s} s and {self.bytes_per_s} bytes/s cannot be")

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds for which ``num_bytes`` keep the link busy."""
        return num_bytes / self.bytes_per_s


Links = Mapping[tuple[str, str], LinkSpeed]
"""By (node id, node id), in either order."""

UNKNOWN_LINK = LinkSpeed(latency_s=0.0005, bytes_per_s=100e6)
"""What a link counts as before it is measured: an ordinary wired network."""


def link_between(links: Links, one: str, other: str) -> LinkSpeed:
    """The link between two nodes, in either order; ``UNKNOWN_LINK`` where it was not measured."""
    return links.get((one, other)) or links.get((other, one)) or UNKNOWN_LINK


@dataclass(frozen=True)
class PlacementRequest:
    """What is to be placed: a model, for ``max_sequences`` sequences of ``context`` positions each."""

    size: ModelSize
    context: int
    max_sequences: int
    policy: Policy = "memory"


@dataclass(frozen=True)
class Plan:
    """Which host runs which layers: (host id, range) in pipeline order, tiling the model."""

    stages: tuple[tuple[str, LayerRange], ...]


def memory_needed(want: PlacementRequest, layers: int, ends: bool) -> int:
    """Bytes that a stage of so many layers takes, with the model's ends where it shares their machine.

    Weights count 1.25 times what is stored: backends add scales in float32 and packing (ONNX Runtime measured 1.2
    to 1.4 on 4-bit layers). KV caches count in full, and a constant and a prefill chunk as working space.
    """
    size = want.size
    weights = layers * size.layer_bytes + (size.ends_bytes if ends else 0)
    working = _WORKING_BYTES + size.hidden_bytes(_WORKING_ROWS)
    return weights * 5 // 4 + layers * size.kv_bytes * want.context * want.max_sequences + working


def most_layers(want: PlacementRequest, host: StageHost) -> int:
    """The most layers, up to all of them, that the host's memory takes."""
    counts = range(1, want.size.layers + 1)
    return bisect_right(counts, host.memory, key=lambda n: memory_needed(want, n, host.coordinator))


def hop_s(want: PlacementRequest, links: Links, start: str, end: str) -> float:
    """Seconds that one hidden state (1, D) in float32 takes from node to node; nothing within a node."""
    if start == end:
        return 0.0
    link = link_between(links, start, end)
    return link.latency_s + link.transfer_s(want.size.hidden_bytes(1))


def _pass_s(size: ModelSize, host: StageHost, layers: LayerRange) -> float:
    """Seconds in which one row passes the weights of ``layers`` on ``host``."""
    return len(layers) * size.layer_bytes / host.decode_bytes_per_s(size)


def decode_step_s(
    want: PlacementRequest, plan: Plan, hosts: Sequence[StageHost], links: Links, coordinator: str
) -> float:
    """Predicted seconds of a decode step: each stage passes its weights, and N stages make N + 1 hops."""
    by_id = {host.id: host for host in hosts}
    weights_s = sum(_pass_s(want.size, by_id[host], layers) for host, layers in plan.stages)
    way = [coordinator, *(by_id[host].node for host, _ in plan.stages), coordinator]
    return weights_s + sum(hop_s(want, links, a, b) for a, b in pairwise(way))


def slowest_stage_s(want: PlacementRequest, plan: Plan, hosts: Sequence[StageHost]) -> float:
    """Predicted decode seconds of the slowest stage, which bounds the tokens/s of many sequences together."""
    by_id = {host.id: host for host in hosts}
    return max(_pass_s(want.size, by_id[host], layers) for host, layers in plan.stages)


def plan_cost_s(
    want: PlacementRequest, plan: Plan, hosts: Sequence[StageHost], links: Links, coordinator: str
) -> float:
    """What the policy minimises: the fullest host's layers per byte of its memory, or seconds."""
    if want.policy == "speed":
        return decode_step_s(want, plan, hosts, links, coordinator)
    if want.policy == "throughput":
        return slowest_stage_s(want, plan, hosts)
    by_id = {host.id: host for host in hosts}
    return max(len(layers) / max(1, by_id[host].memory) for host, layers in plan.stages)
