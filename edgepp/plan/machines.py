"""What predictions reckon with: a model, machines with the rates they reach, stages on them, and what is asked.

Bytes, seconds, bytes/s, FLOP/s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edgepp.cluster.sizes import ModelSize
from edgepp.errors import PlanError
from edgepp.layers import LayerRange
from edgepp.model.cards import DTYPE_BYTES, Shape

CPU_CHUNK, GPU_CHUNK = 64, 512
"""Tokens of a prefill chunk with which the backends are efficient."""
_FLOAT32 = 4


@dataclass(frozen=True)
class Model:
    """What a prediction needs to know of a model."""

    name: str
    size: ModelSize
    head_bytes: int
    """Stored bytes that making logits reads: the output head, or the embedding where the two are tied."""
    head_flops: int
    """FLOPs of one row's logits."""
    attention_flops: int
    """FLOPs of one token in one layer for each position that it attends to: 4·H·head size."""
    context: int
    """The most positions of a sequence."""
    wire_item_bytes: int = _FLOAT32
    """Bytes of one number of a hidden state on the wire."""

    @classmethod
    def of(cls, name: str, shape: Shape, kv_bits: int | None = None) -> Model:
        """The facts of a card, or of any shape; hidden states in float32, as the CPU backends send them."""
        head = shape.embedding_bytes() if shape.tied else shape.head_bytes() - shape.hidden * DTYPE_BYTES[shape.dtype]
        return cls(
            name=name,
            size=ModelSize.of(shape, kv_bits),
            head_bytes=head,
            head_flops=2 * shape.vocabulary * shape.hidden,
            attention_flops=4 * shape.heads * shape.head_size,
            context=shape.context,
        )


@dataclass(frozen=True)
class Efficiency:
    """What is reached of a machine's rates, and what its software adds. Calibrate it where both are measured."""

    stream: float = 1.0
    """Share of ``stream_bps`` when weights are read."""
    kv: float = 1.0
    """Share of ``stream_bps`` when KV caches are read; below 1 also where a backend reads them more than once."""
    flops: float = 1.0
    attention: float = 1.0
    """Share of the FLOP/s reached elsewhere that attention over a prompt reaches."""
    overlap: float = 0.0
    """How much arithmetic of further rows hides behind streaming weights: 1 all (a GPU), 0 none (measured on CPUs)."""
    batches: tuple[tuple[int, float], ...] = ()
    """Measured in place of ``overlap``: (rows, how many times as long as for one row they take to pass the weights), by
    rising rows; linear between them, and from the last to a chunk at the machine's FLOP/s."""
    hop_s: float = 0.0003
    """Seconds that sending, receiving and decoding one frame costs, apart from the link: a processor's work."""
    step_s: float = 0.0
    """Seconds that every step of a stage costs beside its weights,"""
    layer_s: float = 0.0
    """and every layer of it: what small operations cost, however narrow the model is."""
    sample_s: float = 0.0002
    """The coordinator's seconds a row beside the head's: sampling, text, scheduling."""


MEASURED = Efficiency(kv=0.5, attention=0.3)
"""For rates that a node's own probe measured: they are what is reached with weights. Keys and values are read at half
that rate, and attention over a prompt reaches a third of the FLOP/s: ONNX Runtime on a Xeon, bench/prediction.py."""
DATASHEET = Efficiency(stream=0.65, kv=0.65, flops=0.5, overlap=1.0)
"""For rates off a data sheet, of a GPU. llama.cpp's table of Apple chips (discussion 4167, a 7B model in 4 bits) has
0.42 (M2 Ultra) to 0.78 (M2) of the bandwidth in decode, 0.6 to 0.7 of the FLOP/s in prefill; the scaling book plans
with 0.4."""
DATASHEET_CPU = replace(DATASHEET, overlap=0.0)


@dataclass(frozen=True)
class Machine:
    """What computes: a node, by its rates.

    Raises:
        PlanError: its numbers cannot be those of a machine.
    """

    node: str
    """Between processes of one node there is no network."""
    stream_bps: float
    """Bytes/s of weights while decoding."""
    flops: float
    """FLOP/s in prefill."""
    efficiency: Efficiency = MEASURED
    lanes: int = 1
    """Processes that it runs at once at the given rates: those that have cores, or a GPU, of their own. More of them
    take turns, so no cycle is shorter than all their seconds divided by the lanes."""
    chunk: int = CPU_CHUNK
    """Tokens of a prefill chunk with which it reaches its FLOP/s."""
    crowded: float = 1.0
    """How many times as long a step takes while every lane works, at least 1: lanes share the memory's bandwidth."""

    def __post_init__(self) -> None:
        rates = (self.stream_bps, self.flops, self.efficiency.stream, self.efficiency.kv, self.efficiency.flops)
        if not all(0 < rate < math.inf for rate in rates) or self.lanes < 1 or self.chunk < 2 or self.crowded < 1:
            raise PlanError(
                f"{self.node} cannot have {self.stream_bps} bytes/s, {self.flops} FLOP/s, {self.lanes} lanes and chunks"
                f" of {self.chunk}",
                "if it is a node of a cluster, start it again, so that it is measured again",
            )

    def beside(self, working: int) -> Machine:
        """The machine as each of so many processes that work at once has it."""
        others = min(working, self.lanes) - 1
        if others < 1:
            return self
        slower = 1 + (self.crowded - 1) * others / (self.lanes - 1)
        return replace(self, stream_bps=self.stream_bps / slower, flops=self.flops / slower)


@dataclass(frozen=True)
class Stage:
    """A layer range on a machine."""

    machine: Machine
    layers: LayerRange


@dataclass(frozen=True)
class Workload:
    """What is asked of the pipeline."""

    prompt: int = 512
    answer: int = 256
    requests: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of requests that decode at once, each to be predicted."""
    chunk: int | None = None
    """Tokens of a prefill chunk; None as the engine chooses them."""

    @property
    def position(self) -> int:
        """Positions in the cache halfway through the answer."""
        return self.prompt + self.answer // 2
