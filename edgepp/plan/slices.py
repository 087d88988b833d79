"""One model on a slice of accelerator chips: which slice holds it, and which layout serves the most.

Scaling's chapter "Serving LLaMA 3-70B" as functions; ``roofline`` has the formulas. Weights are sharded over the whole
slice, and each chip holds its part of all KV caches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepp.errors import PlanError
from edgepp.plan.hardware import Hardware
from edgepp.plan.roofline import StepTime, chips_needed, decode_step, sequences_that_fit, sharded_matmul

TPU_V5E_SLICES = (1, 4, 8, 16, 32, 64, 128, 256)
"""Chips of the slices 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 and 16x16."""
_COLLECTIVES = 4
"""A layer's exchanges: before and after attention, before and after the MLP."""


@dataclass(frozen=True)
class Served:
    """What a layout serves: bytes are of the whole model and of one sequence."""

    weights: float
    """Parameters."""
    weight_bytes: float
    kv_sequence_bytes: float
    flops_s: float
    """FLOP/s of a chip in the dtype of the arithmetic, which may be wider than the weights'."""
    layers: int
    hidden: int
    activation_item_bytes: float = 2.0


@dataclass(frozen=True)
class Layout:
    """A slice and the batch it decodes."""

    chips: int
    batch: int
    step: StepTime
    ici_s: float
    """Seconds of a step's exchanges between chips, which hide behind weights and FLOPs or these behind them."""

    @property
    def step_s(self) -> float:
        """Seconds of one decode step."""
        return max(self.step.total_s, self.step.kv_s + self.ici_s)

    @property
    def tokens_s(self) -> float:
        """Tokens a second of the whole slice."""
        return self.batch / self.step_s


def smallest_slice(size: float, memory: float, slices: Sequence[int] = TPU_V5E_SLICES) -> int:
    """Chips of the smallest slice whose memories hold ``size`` bytes.

    Raises:
        PlanError: none does.
    """
    needed = chips_needed(size, memory)
    for chips in slices:
        if chips >= needed:
            return chips
    raise PlanError(f"{size / 1e9:.0f} GB need {needed:.1f} chips, more than the largest slice of {max(slices)} has")


def layout(served: Served, chip: Hardware, chips: int, batch: int, axes: int = 2) -> Layout:
    """What one decode step of ``batch`` takes on ``chips``, with exchanges over ``axes`` of their mesh."""
    ici = 0.0
    if chips > 1 and chip.ici_bytes_s:
        one = sharded_matmul(
            batch, served.hidden, served.hidden, chips, axes * chip.ici_bytes_s, chip.bandwidth, served.flops_s,
            served.activation_item_bytes,
        )  # fmt: skip
        ici = _COLLECTIVES * served.layers * one.ici_s
    step = decode_step(
        batch, served.kv_sequence_bytes, served.weight_bytes, served.weights, chip.bandwidth, served.flops_s, chips
    )
    return Layout(chips, batch, step, ici)


def fastest_layouts(
    served: Served, chip: Hardware, limit_s: float, slices: Sequence[int] = TPU_V5E_SLICES
) -> Iterator[Layout]:
    """For each slice on which a step stays within ``limit_s``: the layout of the largest batch that does, and fits."""
    for chips in slices:
        room = sequences_that_fit(chips, chip.memory, served.weight_bytes, served.kv_sequence_bytes)
        batches = range(1, room + 1)
        batch = bisect_right(batches, limit_s, key=lambda n: layout(served, chip, chips, n).step_s)
        if batch:
            yield layout(served, chip, chips, batch)
