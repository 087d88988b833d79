"""Values of placement: sizes of a model, hosts, links, plans, and the cost of a plan.

Pure: no socket, no clock, no file. Units are bytes, seconds and FLOP/s; layer ranges are half-open.
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
"""Bits per quantised key or value for the float32 scale and bias that 32 of them share."""
_WORKING_BYTES = 64_000_000
_WORKING_ROWS = 128 * 32
"""Rows of working space: a prefill chunk of 128 tokens, with 32 activations of a hidden state's width per token."""


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model, for placement."""

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
    """FLOPs of one token in one layer, 2 per weight."""

    @classmethod
    def of(cls, shape: Shape, kv_bits: int | None = None) -> ModelSize:
        """Sizes of a card, or of any shape.

        Keys and values are float32, as in the CPU backends, or have ``kv_bits`` and the scales of small groups.
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

    def with_copies(self, copies: int) -> ModelSize:
        """The sizes for a cluster where each layer's keys and values are kept ``copies`` times more."""
        return replace(self, kv_bytes=self.kv_bytes * (1 + copies))

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of the whole model."""
        return self.layers * self.layer_bytes + self.ends_bytes

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        return self.layers * self.kv_bytes

    def hidden_bytes(self, rows: int, item_bytes: int = FLOAT32_BYTES) -> int:
        """Bytes of hidden states (rows, D) on one hop, with ``item_bytes`` per number."""
        return rows * self.hidden * item_bytes


@dataclass(frozen=True)
class StageHost:
    """One stage process that a node offers.

    Raises:
        PlanError: memory is negative, or a rate is not a positive number.
    """

    id: str
    """Unique and stable."""
    node: str
    """Node id of the machine; there is no network between hosts of one node."""
    memory_bytes: int
    """Memory that the model may use."""
    stream_bytes_per_s: float
    """Measured rate of reading weights while decoding."""
    flops_per_s: float
    """Measured rate of arithmetic in prefill."""
    pinned: LayerRange | None = None
    coordinator: bool = False
    """Whether embedding and head take part of ``memory_bytes``; true for one host of the coordinator's machine."""
    name: str = ""
    """Name for people; empty: the id."""

    def __post_init__(self) -> None:
        if self.memory_bytes < 0 or not _positive(self.stream_bytes_per_s) or not _positive(self.flops_per_s):
            raise PlanError(
                f"node {self} reports {self.memory_bytes} bytes, {self.stream_bytes_per_s} bytes/s and"
                f" {self.flops_per_s} FLOP/s, which no machine has",
                "restart that node, so that it is measured again",
            )

    def __str__(self) -> str:
        return self.name or self.id

    def decode_bytes_per_s(self, size: ModelSize) -> float:
        """Bytes of weights per second in a decode step of one row, limited by reading or by arithmetic."""
        return min(self.stream_bytes_per_s, self.flops_per_s * size.layer_bytes / max(1, size.layer_flops))

    def divided(self, slots: int) -> tuple[StageHost, ...]:
        """``slots`` stage processes in place of one, with equal shares of memory and rates.

        Only the first is pinned, and only the first keeps ``coordinator``.
        """
        return tuple(
            replace(
                self,
                id=f"{self.id}/{slot}",
                memory_bytes=self.memory_bytes // slots,
                stream_bytes_per_s=max(1.0, self.stream_bytes_per_s / slots),
                flops_per_s=max(1.0, self.flops_per_s / slots),
                pinned=None if slot else self.pinned,
                coordinator=self.coordinator and not slot,
            )
            for slot in range(slots)
        )


@dataclass(frozen=True)
class LinkSpeed:
    """Latency and rate of one direction between two nodes; both directions count as equal.

    Raises:
        PlanError: the latency is negative, or the rate is not a positive number.
    """

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0 and _positive(self.bytes_per_s)):
            raise PlanError(f"no link has {self.latency_s} s of latency and {self.bytes_per_s} bytes/s")

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds for which ``num_bytes`` occupy the link."""
        return num_bytes / self.bytes_per_s


Links = Mapping[tuple[str, str], LinkSpeed]
"""Links by (node id, node id), in either order."""

UNKNOWN_LINK = LinkSpeed(latency_s=0.0005, bytes_per_s=100e6)
"""Assumption for a link that was not measured: an ordinary wired network."""


def link_between(links: Links, one: str, other: str) -> LinkSpeed:
    """The link between two nodes, in either order; ``UNKNOWN_LINK`` where it was not measured."""
    return links.get((one, other)) or links.get((other, one)) or UNKNOWN_LINK


@dataclass(frozen=True)
class PlacementRequest:
    """Request for a plan: a model, with KV caches for ``max_sequences`` sequences of ``context`` positions each."""

    size: ModelSize
    context: int
    max_sequences: int
    policy: Policy = "memory"


@dataclass(frozen=True)
class Plan:
    """Assignment of layers to hosts: (host id, range) in pipeline order; the ranges tile the model."""

    stages: tuple[tuple[str, LayerRange], ...]


def memory_needed(request: PlacementRequest, layers: int, ends: bool) -> int:
    """Bytes that a stage of ``layers`` layers takes; ``ends`` adds embedding and head.

    Weights count 1.25 times their stored bytes, because backends add float32 scales and packing (ONNX Runtime measured
    1.2 to 1.4 on 4-bit layers). KV caches count in full; a constant and a prefill chunk are working space.
    """
    size = request.size
    weights = layers * size.layer_bytes + (size.ends_bytes if ends else 0)
    working = _WORKING_BYTES + size.hidden_bytes(_WORKING_ROWS)
    return weights * 5 // 4 + layers * size.kv_bytes * request.context * request.max_sequences + working


def max_layers(request: PlacementRequest, host: StageHost) -> int:
    """Greatest number of layers, up to all, that the host's memory holds."""
    counts = range(1, request.size.layers + 1)
    return bisect_right(counts, host.memory_bytes, key=lambda n: memory_needed(request, n, host.coordinator))


def hop_s(request: PlacementRequest, links: Links, start: str, end: str) -> float:
    """Seconds of one hidden state (1, D) in float32 from node ``start`` to node ``end``; 0 within a node."""
    if start == end:
        return 0.0
    link = link_between(links, start, end)
    return link.latency_s + link.transfer_s(request.size.hidden_bytes(1))


def _pass_s(size: ModelSize, host: StageHost, layers: LayerRange) -> float:
    """Seconds for one row to pass the weights of ``layers`` on ``host``."""
    return len(layers) * size.layer_bytes / host.decode_bytes_per_s(size)


def decode_step_s(
    request: PlacementRequest, plan: Plan, hosts: Sequence[StageHost], links: Links, coordinator: str
) -> float:
    """Predicted seconds of a decode step of one row: the pass of every stage, and N + 1 hops for N stages."""
    by_id = {host.id: host for host in hosts}
    weights_s = sum(_pass_s(request.size, by_id[host], layers) for host, layers in plan.stages)
    path = [coordinator, *(by_id[host].node for host, _ in plan.stages), coordinator]
    return weights_s + sum(hop_s(request, links, a, b) for a, b in pairwise(path))


def slowest_stage_s(request: PlacementRequest, plan: Plan, hosts: Sequence[StageHost]) -> float:
    """Predicted decode seconds of the slowest stage, which bounds the token rate of many sequences together."""
    by_id = {host.id: host for host in hosts}
    return max(_pass_s(request.size, by_id[host], layers) for host, layers in plan.stages)


def plan_cost_s(
    request: PlacementRequest, plan: Plan, hosts: Sequence[StageHost], links: Links, coordinator: str
) -> float:
    """The quantity that the policy minimises: greatest layers per byte of a host's memory, or seconds."""
    if request.policy == "speed":
        return decode_step_s(request, plan, hosts, links, coordinator)
    if request.policy == "throughput":
        return slowest_stage_s(request, plan, hosts)
    by_id = {host.id: host for host in hosts}
    return max(len(layers) / max(1, by_id[host].memory_bytes) for host, layers in plan.stages)
