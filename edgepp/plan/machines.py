"""Input of predictions: a model, machines with reached rates, stages on machines, a workload.

Units are bytes, seconds, bytes/s and FLOP/s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import DTYPE_BYTES, Shape, token_flops
from edgepp.placement.values import FLOAT32_BYTES, LinkSpeed, ModelSize

CPU_CHUNK, GPU_CHUNK = 64, 512
"""Tokens of a prefill chunk with which the backends are efficient."""


@dataclass(frozen=True)
class Model:
    """Sizes of a model, for predictions."""

    name: str
    size: ModelSize
    head_bytes: int
    """Stored bytes read to compute logits: the output head, or the embedding where the two are tied."""
    head_flops: int
    """FLOPs of one row's logits."""
    attention_flops: int
    """FLOPs of one token in one layer per position that it attends to, 4·N·H."""
    context: int
    """Greatest number of positions of a sequence."""
    wire_item_bytes: int = FLOAT32_BYTES
    """Bytes of one number of a hidden state on the wire."""

    @classmethod
    def of(cls, name: str, shape: Shape, kv_bits: int | None = None) -> Model:
        """The model of a card, or of any shape, with hidden states in float32, as the CPU backends send them."""
        head = shape.embedding_bytes() if shape.tied else shape.head_bytes() - shape.hidden * DTYPE_BYTES[shape.dtype]
        return cls(
            name=name,
            size=ModelSize.of(shape, kv_bits),
            head_bytes=head,
            head_flops=token_flops(shape.vocabulary * shape.hidden),
            attention_flops=4 * shape.heads * shape.head_size,
            context=shape.context,
        )


@dataclass(frozen=True)
class Efficiency:
    """The shares of a machine's rates that are reached, and the seconds that its software adds."""

    stream: float = 1.0
    """Share of ``stream_bytes_per_s`` when weights are read."""
    kv: float = 1.0
    """Share of ``stream_bytes_per_s`` when KV caches are read; also below 1 if a backend reads them more than once."""
    flops: float = 1.0
    """Share of ``flops_per_s`` when rows pass weights."""
    attention: float = 1.0
    """Share of those FLOP/s that attention over a prompt reaches."""
    overlap: float = 0.0
    """Share of the arithmetic of further rows that reading weights hides: 1 on a GPU, 0 measured on CPUs."""
    batches: tuple[tuple[int, float], ...] = ()
    """Measured in place of ``overlap``, by rising rows: (rows, their time / time of one row); linear between them,
    and from the last to a chunk at the machine's FLOP/s."""
    hop_s: float = 0.0003
    """Seconds of processor work to send, receive and decode one frame, without the link."""
    step_s: float = 0.0
    """Fixed seconds of each step of a stage."""
    layer_s: float = 0.0
    """Fixed seconds of each layer in a step: small operations, however narrow the model is."""
    half_s: float = 0.00003
    """Seconds that half of a layer takes a rank beyond its part of the whole layer's time; a node's probe measures it,
    and a described machine has 30 µs, the 20 to 50 of ONNX Runtime on a Xeon and an EPYC (bench/LOG.md)."""
    sample_s: float = 0.0002
    """Seconds per row at the coordinator in addition to the head: sampling, text, scheduling."""
    head_s: float = 0.0
    """Measured seconds of head and sampling for one row at the coordinator; 0: by the rates."""


MEASURED = Efficiency(kv=0.5, attention=0.3)
"""For rates that a node's probe measured. Weights reach these rates, keys and values are read at half the rate, and
attention over a prompt reaches 0.3 of the FLOP/s (ONNX Runtime on a Xeon, bench/prediction.py)."""
DATASHEET = Efficiency(stream=0.65, kv=0.65, flops=0.5, overlap=1.0)
"""For a GPU by its data sheet. llama.cpp's table of Apple chips (discussion 4167, a 7B model in 4 bits) has
0.42 (M2 Ultra) to 0.78 (M2) of the bandwidth in decode, 0.6 to 0.7 of the FLOP/s in prefill; the scaling book plans
with 0.4."""
DATASHEET_CPU = replace(DATASHEET, overlap=0.0)


@dataclass(frozen=True)
class Machine:
    """A node with its rates.

    Raises:
        PlanError: a rate is not a positive number, or another value is below its minimum.
    """

    node: str
    """Name of the node; there is no network between its processes."""
    stream_bytes_per_s: float
    """Bytes/s of weights while decoding."""
    flops_per_s: float
    """FLOP/s in prefill."""
    efficiency: Efficiency = MEASURED
    lanes: int = 1
    """Processes that run at the same time at the given rates, each with its own cores or GPU. Further processes take
    turns, so no cycle is shorter than the seconds of all processes divided by the lanes."""
    chunk: int = CPU_CHUNK
    """Tokens of a prefill chunk that reaches ``flops_per_s``."""
    contention: float = 1.0
    """Factor, at least 1, by which a step slows down while every lane works: lanes share the memory's bandwidth."""
    ranks: int = 1
    """Machines that share each layer, if this one stands for several; ``node`` is that of rank 0."""
    sums: LinkSpeed | None = None
    """Cost of a sum over two of these machines; None for one machine."""

    def __post_init__(self) -> None:
        reached = self.efficiency
        rates = (self.stream_bytes_per_s, self.flops_per_s, reached.stream, reached.kv, reached.flops)
        if not all(0 < rate < math.inf for rate in rates) or self.lanes < 1 or self.chunk < 2 or self.contention < 1:
            raise PlanError(
                f"{self.node} cannot have {self.stream_bytes_per_s} bytes/s, {self.flops_per_s} FLOP/s,"
                f" {self.lanes} lanes and chunks of {self.chunk}",
                "if this is a node of a cluster, restart that node, so that it is measured again",
            )

    def shared_by(self, working: int) -> Machine:
        """The machine as seen by each of ``working`` processes that work at the same time."""
        others = min(working, self.lanes) - 1
        if others < 1:
            return self
        slower = 1 + (self.contention - 1) * others / (self.lanes - 1)
        return replace(self, stream_bytes_per_s=self.stream_bytes_per_s / slower, flops_per_s=self.flops_per_s / slower)


@dataclass(frozen=True)
class Stage:
    """A layer range on a machine."""

    machine: Machine
    layers: LayerRange
    nodes: tuple[str, ...] = ()
    """Names of the machines that share each layer, in rank order; empty for one machine."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the machines, in rank order."""
        return self.nodes or (self.machine.node,)

    def __str__(self) -> str:
        return " and ".join(self.names)


def shared_machine(machines: Sequence[Machine], weights: Sequence[float], sums: LinkSpeed) -> Machine:
    """One machine that is as fast as ``machines`` in rank order that each compute a part of every layer.

    ``weights`` are these parts, whose sum is 1; the slowest machine counts, in decode and in prefill.
    """
    pairs = list(zip(machines, weights, strict=True))
    slowest, part = min(pairs, key=lambda p: p[0].stream_bytes_per_s * p[0].efficiency.stream / p[1])
    computing, row_part = min(pairs, key=lambda p: p[0].flops_per_s * p[0].efficiency.flops / p[1])
    reached = replace(
        slowest.efficiency,
        flops=computing.efficiency.flops,
        layer_s=max(one.efficiency.layer_s * share for one, share in pairs),
        half_s=max(one.efficiency.half_s for one in machines),
    )
    return replace(
        slowest,
        node=machines[0].node,
        stream_bytes_per_s=slowest.stream_bytes_per_s / part,
        flops_per_s=computing.flops_per_s / row_part,
        efficiency=reached,
        chunk=min(one.chunk for one in machines),
        ranks=len(machines),
        sums=sums,
    )


@dataclass(frozen=True)
class Workload:
    """Lengths and numbers of requests of a prediction."""

    prompt: int = 512
    answer: int = 256
    requests: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of requests that decode at the same time; each is predicted."""
    chunk: int | None = None
    """Tokens of a prefill chunk; None: as the engine chooses them."""

    @property
    def position(self) -> int:
        """Positions in the cache halfway through the answer."""
        return self.prompt + self.answer // 2
