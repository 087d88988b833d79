"""Output of `edgepp plan --slices`: one model on slices of accelerator chips, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich.text import Text

from edgepp.plan.chip_slices import SliceCapacity, SliceQuestion, capacities, critical_batch, fastest_layouts
from edgepp.plan.json_report import slices_dict
from edgepp.ui.screen import Rows, Screen


def show_slices(question: SliceQuestion, *, as_json: bool) -> None:
    """Print capacity and speed of a model on slices of a chip.

    Raises:
        PlanError: no slice holds the model.
    """
    found = list(capacities(question))
    if as_json:
        click.echo(json.dumps(slices_dict(question, found)))
        return
    Screen().show(*_picture(question, found))


def _picture(question: SliceQuestion, found: Sequence[SliceCapacity]) -> Iterator[Any]:
    chip, shape = question.chip, question.shape
    yield Text.assemble(
        (question.name, "bold"),
        f": {shape.num_weights() / 1e9:.4g} billion weights, on slices of {chip.title} ({chip.memory_gb[0]} GB,"
        f" {chip.memory_bytes_per_s / 1e9:,.4g} GB/s, {chip.flops_per_s / 1e12:,.4g} TFLOP/s per chip)",
    )
    yield ""
    yield f"The smallest slice and the next, for sequences of {question.context:,} positions:"
    yield _capacity_table(found)
    yield ""
    yield f"The largest batch, prompts of {question.prompt:,} and answers of {question.answer:,} tokens; prefill in s:"
    yield _serving_table(found)
    yield ""
    yield "Latency against throughput, and the parts of a step; ms:"
    yield _step_table(found)
    yield ""
    yield f"One product with the MLP's {shape.hidden:,} x {shape.ffn:,} matrix in the largest batch; us:"
    yield _matmul_table(found, question)
    if question.tpot_s is not None:
        yield ""
        yield from _fastest(question)
    yield ""
    yield Text(_basis(question), style="dim")


def _capacity_table(found: Sequence[SliceCapacity]) -> Rows:
    table = Rows("DTYPE", ">WEIGHTS", ">KV/TOKEN", ">CHIPS", "SLICE", ">KV ROOM", ">SEQUENCES")
    for one in found:
        table.add_row(
            one.model.precision.name, _bytes(one.model.weight_bytes), _bytes(one.model.kv_token_bytes),
            f"{one.chips_needed:.2f}", one.slice.name, _bytes(one.kv_room_bytes), f"{one.sequences:,}",
        )  # fmt: skip
    return table


def _serving_table(found: Sequence[SliceCapacity]) -> Rows:
    table = Rows("DTYPE", "SLICE", ">BATCH", ">TOKEN/S", ">PER CHIP", ">QPS/CHIP", ">PREFILL", ">SERVERS", ">EVICTED")
    for one in found:
        step = one.largest
        table.add_row(
            one.model.precision.name, one.slice.name, f"{step.batch:,}", f"{step.tokens_per_s:,.0f}",
            f"{step.tokens_per_s / step.chips:,.0f}", f"{one.queries_per_chip_per_s:.2f}", f"{one.prefill_s:.2f}",
            f"{one.prefill_servers:.1f}", f"{one.evicted_tokens_per_step:,.0f}",
        )  # fmt: skip
    return table


def _step_table(found: Sequence[SliceCapacity]) -> Rows:
    table = Rows("DTYPE", "SLICE", ">BATCH", ">STEP", ">TOKEN/S", ">WEIGHTS", ">KV", ">FLOPS", ">ICI", "LIMIT")
    for one in found:
        for step in one.steps:
            parts = step.parts
            seconds = (parts.weights_s, parts.kv_s, parts.arithmetic_s, step.ici_s)
            table.add_row(
                one.model.precision.name, one.slice.name, f"{step.batch:,}", _ms(step.step_s),
                f"{step.tokens_per_s:,.0f}", *map(_ms, seconds),
                step.limit if step.batch <= one.sequences else "does not fit",
            )  # fmt: skip
    return table


def _matmul_table(found: Sequence[SliceCapacity], question: SliceQuestion) -> Rows:
    table = Rows("DTYPE", "SLICE", ">BATCH", ">ICI", ">HBM", ">FLOPS", ">ICI>FLOPS", ">ICI>HBM", ">CRITICAL")
    for one in found:
        times = one.matmul and (one.matmul.ici_s, one.matmul.hbm_s, one.matmul.arithmetic_s)
        bounds = (one.chips_bound_by_flops, one.chips_bound_by_memory)
        table.add_row(
            one.model.precision.name, one.slice.name, f"{one.largest.batch:,}",
            *(f"{seconds * 1e6:.1f}" for seconds in times or ()),
            *(f"{chips:,.0f} chips" for chips in bounds if chips),
            f"batch {critical_batch(one.model.precision, question.chip):.0f}",
        )  # fmt: skip
    return table


def _fastest(question: SliceQuestion) -> Iterator[Any]:
    """Largest batch of each slice within the wanted step time, with a mark at the best rate per chip."""
    found = list(fastest_layouts(question))
    limit = f"{1e3 * (question.tpot_s or 0):g} ms"
    if not found:
        yield f"No slice decodes a token of each sequence within {limit}."
        return
    best = max((step for _, step in found), key=lambda step: step.tokens_per_s / step.chips)
    yield f"Largest batches with a step within {limit}; step in ms:"
    table = Rows("DTYPE", ">CHIPS", ">BATCH", ">STEP", ">TOKEN/S", ">PER CHIP", "LIMIT", "")
    for model, step in found:
        table.add_row(
            model.precision.name, str(step.chips), f"{step.batch:,}", _ms(step.step_s), f"{step.tokens_per_s:,.0f}",
            f"{step.tokens_per_s / step.chips:,.0f}", step.limit, "most per chip" if step is best else "",
        )  # fmt: skip
    yield table


def _basis(question: SliceQuestion) -> str:
    return (
        "CHIPS hold the weights alone. A step is KV plus the longest of weights, FLOPs and ICI (links between chips)."
        " QPS: answers per second. SERVERS: slices that prefill for one that decodes. EVICTED: KV positions freed per"
        " step in a full cache. ICI>FLOPS, ICI>HBM: number of chips above which ICI takes longer. CRITICAL: batch above"
        " which FLOPs take longer than weights. All memory is used, decode reaches peak rates, prefill"
        f" {question.utilisation:g} of the FLOP/s. Source: {question.chip.source}"
    )


def _bytes(size: float) -> str:
    scale, unit = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{size / scale:.1f} {unit}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds >= 0.001 or not seconds else f"{seconds * 1e3:.2f}"
