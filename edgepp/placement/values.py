"""Values of placement: sizes of a model, hosts, links, requests and plans.

Pure: no socket, no clock, no file. Units are bytes, seconds and FLOP/s; layer ranges are half-open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import Shape, token_flops
from edgepp.model.config.model_config import PLAIN
from edgepp.model.tensor_shares import TensorUnits, quantised_unit

Policy = Literal["memory", "speed", "throughput"]

FLOAT32_BYTES = 4
_SCALE_BITS = 2
"""Bits per quantised key or value for the float32 scale and bias that 32 of them share."""


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@dataclass(frozen=True)
class SharedLayer:
    """What ranks that share a layer can divide."""

    units: TensorUnits
    attention_bytes: int
    """Stored bytes of the attention's linears, divided by heads; the rest is divided by FFN columns."""

    @classmethod
    def of(cls, shape: Shape) -> SharedLayer | None:
        """The layer of ``shape``; None where its family cannot be shared."""
        if shape.family not in PLAIN:
            return None
        group = quantised_unit(shape.group_size) if shape.bits and shape.group_size else 1
        columns = shape.heads // shape.kv_heads * shape.head_size
        matrices = {name: shape.matrix_bytes(*sizes, shape.bits) for name, sizes in shape.layer_matrices().items()}
        attention = sum(num_bytes for name, num_bytes in matrices.items() if name.startswith("self_attn"))
        return cls(TensorUnits.of(shape.kv_heads, columns, shape.ffn, group, group), attention)


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
    shared: SharedLayer | None = None
    """None where ranks cannot share the layers."""
    head_bytes: int = 0
    """Stored bytes of the output head, which is the embedding where the two are tied."""

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
            shared=SharedLayer.of(shape),
            head_bytes=shape.embedding_bytes() if shape.tied else shape.head_bytes(),
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
    half_s: float = 0.0
    """Seconds that half of a layer takes a rank beyond its part of the whole layer's time."""
    sums_s: float = 0.0
    """Seconds per layer of a decode step of one row for partial sums and for halves; 0 for a stage of one process."""
    groups_with: frozenset[str] = frozenset()
    """Ids of the hosts that this one is made of, where it is a group."""

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
        """Bytes of weights per second in a decode step of one row, limited by reading or by arithmetic.

        The time that sharing layers costs the ranks counts too.
        """
        rate = min(self.stream_bytes_per_s, self.flops_per_s * size.layer_bytes / max(1, size.layer_flops))
        return rate / (1 + self.sums_s * rate / max(1, size.layer_bytes)) if self.sums_s else rate

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

    def message_s(self, num_bytes: float) -> float:
        """Seconds until ``num_bytes`` have arrived over the idle link."""
        return self.latency_s + self.transfer_s(num_bytes)


Links = Mapping[tuple[str, str], LinkSpeed]
"""Links by (node id, node id), in either order."""

UNKNOWN_LINK = LinkSpeed(latency_s=0.0005, bytes_per_s=100e6)
"""Assumption for a link that was not measured: an ordinary wired network."""


def link_between(links: Links, one: str, other: str) -> LinkSpeed:
    """The link between two nodes, in either order; ``UNKNOWN_LINK`` where it was not measured."""
    return links.get((one, other)) or links.get((other, one)) or UNKNOWN_LINK


SUM_SOFTWARE_S = 150e-6
"""Seconds of a sum over two ranks beyond the link: encoding, encryption, waking (120 to 165 µs, bench/LOG.md)."""


def sum_over(link: LinkSpeed) -> LinkSpeed:
    """The expected cost of a sum over two ranks at both ends of ``link``, where it was not measured."""
    return LinkSpeed(link.latency_s + SUM_SOFTWARE_S, link.bytes_per_s)


def sums_s(size: ModelSize, cost: LinkSpeed, rows: int, ranks: int) -> float:
    """Seconds in which ``ranks`` add both partial sums of a layer, for ``rows`` rows; each sends to all others."""
    return 2 * cost.message_s((ranks - 1) * size.hidden_bytes(rows, FLOAT32_BYTES))


@dataclass(frozen=True)
class PlacementRequest:
    """Request for a plan: a model, with KV caches for ``max_sequences`` sequences of ``context`` positions each."""

    size: ModelSize
    context: int
    max_sequences: int
    policy: Policy = "memory"
    least_context: int = 1
    """Smallest context that is of use: a shorter one is not suggested where the model does not fit."""


@dataclass(frozen=True)
class Plan:
    """Assignment of layers to hosts: (host id, range) in pipeline order; the ranges tile the model."""

    stages: tuple[tuple[str, LayerRange], ...]
