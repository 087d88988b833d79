"""One model on a slice of accelerator chips: which slice holds it, and what each batch size takes there.

The chapter "Serving LLaMA 3-70B" of *How To Scale Your Model* as functions; ``roofline`` has the formulas. Weights are
sharded over the whole slice, and each chip holds its part of all KV caches.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepp.errors import PlanError, UsageError
from edgepp.model.catalogue.cards import Shape
from edgepp.plan import roofline
from edgepp.plan.hardware import Hardware, catalogue
from edgepp.plan.roofline import StepTime

ITEM_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of one weight, or of one number of a KV cache."""
PREFILL_UTILISATION = 0.4
"""Default share of a chip's FLOP/s that prefill reaches (Scaling, "Serving LLaMA 3-70B")."""
_MESH_AXES = 2
_COLLECTIVES = 4
"""Exchanges per layer: before and after attention, before and after the MLP."""


@dataclass(frozen=True)
class Slice:
    """A mesh of chips that is offered as one."""

    name: str
    """Like ``4x8``."""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(int(side) for side in self.name.split("x"))


@dataclass(frozen=True)
class Precision:
    """The dtypes of a model on a chip."""

    name: str
    """``bf16``, ``int8`` or ``int4`` for weights and KV caches; after a colon the dtype of the arithmetic."""
    item_bytes: float
    flops_per_s: float
    """FLOP/s of a chip in the dtype of the arithmetic."""


@dataclass(frozen=True)
class SliceModel:
    """A model in one precision."""

    shape: Shape
    precision: Precision
    context: int
    """Positions of each sequence's KV cache."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of all matrices, without scales and norms."""
        return self.shape.num_weights() * self.precision.item_bytes

    @property
    def kv_token_bytes(self) -> float:
        """Bytes of one position's keys and values."""
        return roofline.kv_token_bytes(self.shape, self.precision.item_bytes)

    @property
    def kv_sequence_bytes(self) -> float:
        """Bytes of one sequence's KV cache."""
        return self.context * self.kv_token_bytes


@dataclass(frozen=True)
class SliceStep:
    """A decode step of one batch size on a slice."""

    chips: int
    batch: int
    parts: StepTime
    ici_s: float
    """Seconds of exchanges between chips; they overlap with reading weights and with arithmetic."""

    @property
    def step_s(self) -> float:
        """Seconds of one decode step, in which each sequence gains one token."""
        return max(self.parts.total_s, self.parts.kv_s + self.ici_s)

    @property
    def tokens_per_s(self) -> float:
        """Tokens/s of the whole slice."""
        return self.batch / self.step_s

    @property
    def limit(self) -> str:
        """The part that takes longest: ``weights``, ``KV``, ``FLOPs`` or ``ICI``."""
        parts = self.parts
        longest_s = max(parts.weights_s, parts.kv_s, parts.arithmetic_s)
        return "ICI" if self.ici_s > longest_s else parts.limit


@dataclass(frozen=True)
class SliceCapacity:
    """A model on a slice, with as many sequences as the memory holds, or with the largest batch asked for."""

    model: SliceModel
    slice: Slice
    chips_needed: float
    """Chips that the weights alone fill."""
    kv_room_bytes: float
    """Memory that the weights leave."""
    sequences: int
    """Sequences whose KV caches fit into ``kv_room_bytes``."""
    steps: tuple[SliceStep, ...]
    """Decode steps by rising batch size."""
    queries_per_chip_per_s: float
    """Answers at the largest batch."""
    evicted_tokens_per_step: float
    """KV positions that sequences which end free in each step, at the largest batch."""
    prefill_s: float
    """Seconds of one prompt on a slice of this kind."""
    prefill_servers: float
    """Slices of this kind that prefill for one that decodes the largest batch."""
    matmul: roofline.MatmulTime | None
    """One product with the MLP's (D, F) at the largest batch; None where the chips' links are unknown."""
    chips_bound_by_flops: float | None
    """Chips above which exchanges take longer than arithmetic."""
    chips_bound_by_memory: float | None
    """Chips above which exchanges take longer than reading weights, at the largest batch."""

    @property
    def largest(self) -> SliceStep:
        """The step of the largest batch."""
        return self.steps[-1]


@dataclass(frozen=True)
class SliceQuestion:
    """Question about slices of one kind of chip."""

    name: str
    shape: Shape
    chip: Hardware
    slices: tuple[Slice, ...]
    """Slices to choose from, the smallest first."""
    precisions: tuple[Precision, ...]
    context: int
    prompt: int
    answer: int
    batches: tuple[int, ...] = ()
    """Batch sizes to show; none: powers of 4 up to as many sequences as fit."""
    tpot_s: float | None = None
    """Longest decode step that is accepted."""
    utilisation: float = PREFILL_UTILISATION
    """Share of the FLOP/s that prefill reaches."""

    def __post_init__(self) -> None:
        if min(self.context, self.prompt, self.answer) < 1:
            raise UsageError("a context, a prompt and an answer have at least 1 token", "give a number above 0")
        if self.tpot_s is not None and self.tpot_s <= 0:
            raise UsageError(f"no token comes in {self.tpot_s:g} s", "ask for a time above 0")


def read_slices(chip: Hardware, name: str = "") -> tuple[Slice, ...]:
    """The slices of ``chip``, or only the one called ``name``.

    Raises:
        UsageError: no slice of ``chip`` is known, or none has this name.
    """
    if not chip.slices:
        known = ", ".join(one.name for one in catalogue().values() if one.slices)
        raise UsageError(f"no slices of {chip.name} are known", f"slices are known of {known}")
    if name and name not in chip.slices:
        raise UsageError(f"{chip.name} has no slice {name}", f"it has {', '.join(chip.slices)}")
    return tuple(Slice(one) for one in chip.slices if not name or one == name)


def read_precision(text: str, chip: Hardware) -> Precision:
    """A precision such as ``int8``, whose arithmetic is in bf16, or ``int8:int8``.

    Raises:
        UsageError: ``text`` is not a precision, or ``chip`` does not compute in it.
    """
    stored, _, computed = text.partition(":")
    rates = {"": chip.flops_per_s, "bf16": chip.flops_per_s, "int8": chip.int8_flops_per_s}
    if stored not in ITEM_BYTES or computed not in rates:
        raise UsageError(f"'{text}' is not a precision", "write bf16, int8 or int4, or int8:int8 for int8 arithmetic")
    rate = rates[computed]
    if rate is None:
        raise UsageError(f"no FLOP/s of {chip.name} in {computed} are known", "compute in bf16")
    return Precision(text, ITEM_BYTES[stored], rate)


def smallest_slice(num_bytes: float, chip: Hardware, slices: Sequence[Slice]) -> Slice:
    """The first of ``slices`` whose memories hold ``num_bytes``.

    Raises:
        PlanError: none does.
    """
    needed = roofline.chips_needed(num_bytes, chip.memory_bytes)
    for one in slices:
        if one.chips >= needed:
            return one
    largest = slices[-1]
    raise PlanError(
        f"{num_bytes / 1e9:.0f} GB need {needed:.1f} chips, more than the {largest.chips} of slice {largest.name}",
        "choose a smaller precision with --dtype, or a smaller model",
    )


def slice_step(model: SliceModel, chip: Hardware, chips: int, batch: int) -> SliceStep:
    """A decode step of ``batch`` on ``chips``, with exchanges over both axes of their mesh."""
    shape, precision, ici_s = model.shape, model.precision, 0.0
    if chips > 1 and chip.ici_bytes_per_s:
        exchange = roofline.sharded_matmul(
            batch, shape.hidden, shape.hidden, chips, _MESH_AXES * chip.ici_bytes_per_s, chip.memory_bytes_per_s,
            precision.flops_per_s,
        )  # fmt: skip
        ici_s = _COLLECTIVES * shape.layers * exchange.ici_s
    parts = roofline.decode_step(
        batch, model.kv_sequence_bytes, model.weight_bytes, shape.num_weights(), chip.memory_bytes_per_s,
        precision.flops_per_s, chips,
    )  # fmt: skip
    return SliceStep(chips, batch, parts, ici_s)


def fastest_steps(model: SliceModel, chip: Hardware, limit_s: float, slices: Sequence[Slice]) -> Iterator[SliceStep]:
    """Steps of at most ``limit_s``: for each slice that has one, the step of the largest batch that fits the memory."""
    for one in slices:
        room = roofline.sequences_that_fit(one.chips, chip.memory_bytes, model.weight_bytes, model.kv_sequence_bytes)
        batch = bisect_right(range(1, room + 1), limit_s, key=lambda n: slice_step(model, chip, one.chips, n).step_s)
        if batch:
            yield slice_step(model, chip, one.chips, batch)


def capacities(question: SliceQuestion) -> Iterator[SliceCapacity]:
    """For each precision: the smallest slice that holds the weights, and the next larger one.

    Raises:
        PlanError: no slice holds the weights.
    """
    for precision in question.precisions:
        model = SliceModel(question.shape, precision, question.context)
        first = question.slices.index(smallest_slice(model.weight_bytes, question.chip, question.slices))
        for one in question.slices[first : first + 2]:
            yield _capacity(question, model, one)


def fastest_layouts(question: SliceQuestion) -> Iterator[tuple[SliceModel, SliceStep]]:
    """``fastest_steps`` of each precision within the question's ``tpot_s``; nothing without it."""
    if question.tpot_s is not None:
        for precision in question.precisions:
            model = SliceModel(question.shape, precision, question.context)
            for step in fastest_steps(model, question.chip, question.tpot_s, question.slices):
                yield model, step


def _capacity(question: SliceQuestion, model: SliceModel, one: Slice) -> SliceCapacity:
    chip, chips, shape, flops_per_s = question.chip, one.chips, model.shape, model.precision.flops_per_s
    sequences = roofline.sequences_that_fit(chips, chip.memory_bytes, model.weight_bytes, model.kv_sequence_bytes)
    batches = question.batches or (*(n for n in (4**power for power in range(12)) if n < sequences), max(1, sequences))
    steps = tuple(slice_step(model, chip, chips, batch) for batch in batches)
    batch, step_s = steps[-1].batch, steps[-1].step_s
    prefill_s = roofline.prefill_s(question.prompt, shape.num_weights(), flops_per_s, chips, question.utilisation)
    rate, ici = chip.memory_bytes_per_s, chip.ici_bytes_per_s
    return SliceCapacity(
        model=model,
        slice=one,
        chips_needed=roofline.chips_needed(model.weight_bytes, chip.memory_bytes),
        kv_room_bytes=chips * chip.memory_bytes - model.weight_bytes,
        sequences=sequences,
        steps=steps,
        queries_per_chip_per_s=roofline.queries_per_chip_per_s(batch, step_s, question.answer, chips),
        evicted_tokens_per_step=roofline.evicted_tokens_per_step(batch, question.prompt, question.answer),
        prefill_s=prefill_s,
        prefill_servers=roofline.prefill_servers(prefill_s, step_s, batch, question.answer),
        matmul=None if ici is None else roofline.sharded_matmul(
            batch, shape.hidden, shape.ffn, chips, ici, rate, flops_per_s,
            weight_item_bytes=model.precision.item_bytes,
        ),
        chips_bound_by_flops=ici and roofline.parallelism_bound_by_flops(shape.ffn, _MESH_AXES, flops_per_s, ici),
        chips_bound_by_memory=ici and roofline.parallelism_bound_by_memory(shape.ffn, batch, rate, ici),
    )  # fmt: skip


def critical_batch(precision: Precision, chip: Hardware) -> float:
    """Batch size above which arithmetic in ``precision`` takes longer than reading the weights."""
    return roofline.critical_batch(precision.flops_per_s, chip.memory_bytes_per_s, precision.item_bytes)
