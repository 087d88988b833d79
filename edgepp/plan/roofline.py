"""Rooflines: the least time that memory, arithmetic and links allow, one formula per function.

Units are bytes, seconds, bytes/s and FLOP/s. ``costs`` computes the steps of a pipeline with them, ``slices`` those of
accelerator chips. "Scaling" stands for J. Austin and others, *How To Scale Your Model* (2025),
https://jax-ml.github.io/scaling-book, followed by the name of a chapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgepp.model.catalogue.cards import Shape, token_flops


def kv_token_bytes(shape: Shape, item_bytes: float) -> float:
    """Bytes of one position's keys and values in all layers, 2·K·H·L items (Scaling, "Inference")."""
    return shape.layers * shape.kv_numbers() * item_bytes


# One step


def read_s(num_bytes: float, bytes_per_s: float, chips: int = 1) -> float:
    """Seconds to read ``num_bytes`` from ``chips`` memories in parallel, each at ``bytes_per_s``."""
    return num_bytes / (chips * bytes_per_s)


def compute_s(flops: float, flops_per_s: float, chips: int = 1, utilisation: float = 1.0) -> float:
    """Seconds to compute ``flops`` on ``chips``, each at the share ``utilisation`` of ``flops_per_s``."""
    return flops / (chips * flops_per_s * utilisation)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one decode step, by part. Arithmetic and reading weights overlap."""

    weights_s: float
    kv_s: float
    arithmetic_s: float

    @property
    def total_s(self) -> float:
        """KV, which almost no arithmetic overlaps, and the longer of weights and arithmetic."""
        return self.kv_s + max(self.weights_s, self.arithmetic_s)

    @property
    def limit(self) -> str:
        """The part that takes longest: ``weights``, ``KV`` or ``FLOPs``."""
        parts = {"weights": self.weights_s, "KV": self.kv_s, "FLOPs": self.arithmetic_s}
        return max(parts, key=lambda part: parts[part])


def decode_step(
    batch: int,
    kv_sequence_bytes: float,
    weight_bytes: float,
    num_weights: int,
    bytes_per_s: float,
    flops_per_s: float,
    chips: int,
) -> StepTime:
    """A decode step of ``batch`` sequences on ``chips`` in parallel, each with ``bytes_per_s`` and ``flops_per_s``.

    step = batch · KV bytes / bandwidth + max(2 · batch · weights / FLOP/s, weight bytes / bandwidth)
    (Scaling, "Inference").
    """
    return StepTime(
        weights_s=read_s(weight_bytes, bytes_per_s, chips),
        kv_s=read_s(batch * kv_sequence_bytes, bytes_per_s, chips),
        arithmetic_s=compute_s(batch * token_flops(num_weights), flops_per_s, chips),
    )


def critical_batch(flops_per_s: float, bytes_per_s: float, weight_item_bytes: float) -> float:
    """Batch size above which arithmetic takes longer than reading the weights (Scaling, "Inference").

    2 · B · P / FLOP/s = P · item / bandwidth, so B = item · FLOP/s / (2 · bandwidth).
    """
    return weight_item_bytes * flops_per_s / (2 * bytes_per_s)


def prefill_s(tokens: int, num_weights: int, flops_per_s: float, chips: int, utilisation: float) -> float:
    """Seconds to prefill ``tokens``, 2 FLOPs per weight and token (Scaling, "Serving LLaMA 3-70B")."""
    return compute_s(tokens * token_flops(num_weights), flops_per_s, chips, utilisation)


# Memory


def chips_needed(num_bytes: float, memory_bytes: float) -> float:
    """Number of memories of ``memory_bytes`` that ``num_bytes`` fill, not rounded."""
    return num_bytes / memory_bytes


def sequences_that_fit(chips: int, memory_bytes: float, weight_bytes: float, kv_sequence_bytes: float) -> int:
    """Number of sequences whose KV caches fit, in addition to the weights, on ``chips`` of ``memory_bytes`` each."""
    return max(0, math.floor((chips * memory_bytes - weight_bytes) / kv_sequence_bytes))


# Serving


def queries_per_chip_per_s(batch: int, step_s: float, answer_tokens: float, chips: int) -> float:
    """Answers per second and chip, batch / (step · tokens · chips) (Scaling, "Serving LLaMA 3-70B")."""
    return batch / (step_s * answer_tokens * chips)


def evicted_tokens_per_step(batch: int, prompt_tokens: float, answer_tokens: float) -> float:
    """KV positions that a full cache frees per step, batch · (prompt + answer) / answer (Scaling, as above).

    Each sequence ends once in ``answer_tokens`` steps, and then all its positions are freed.
    """
    return batch * (prompt_tokens + answer_tokens) / answer_tokens


def prefill_servers(prompt_s: float, step_s: float, batch: int, answer_tokens: float) -> float:
    """Number of prefill servers that keep one decode server busy (Scaling, as above).

    A decode server ends batch / (step · tokens) answers per second, a prefill server starts 1 / ``prompt_s``.
    """
    return prompt_s * batch / (step_s * answer_tokens)


def flops_per_dollar(flops_per_s: float, dollars_per_hour: float) -> float:
    """FLOPs that one dollar rents: FLOP/s · 3600 / price per hour."""
    return flops_per_s * 3600 / dollars_per_hour


# Model parallelism within a slice of chips


@dataclass(frozen=True)
class MatmulTime:
    """Seconds of one sharded matrix product by what bounds it."""

    ici_s: float
    """Exchange of activations between chips."""
    hbm_s: float
    """Reading the weights."""
    arithmetic_s: float


def sharded_matmul(
    batch: int, rows: int, columns: int, chips: int, ici_bytes_per_s: float, bytes_per_s: float, flops_per_s: float,
    item_bytes: float = 2.0, weight_item_bytes: float | None = None,
) -> MatmulTime:  # fmt: skip
    """(B, D) by (D, F) with F sharded over ``chips``: each chip reads its columns (Scaling, as above).

    ICI: item · B · D / link; HBM: weight item · D · F / (chips · bandwidth); FLOPs: 2 · B · D · F / (chips · FLOP/s).
    ``item_bytes`` are of an activation, and of a weight unless ``weight_item_bytes`` differ.
    """
    return MatmulTime(
        ici_s=item_bytes * batch * rows / ici_bytes_per_s,
        hbm_s=read_s((weight_item_bytes or item_bytes) * rows * columns, bytes_per_s, chips),
        arithmetic_s=compute_s(batch * token_flops(rows * columns), flops_per_s, chips),
    )


def parallelism_bound_by_flops(ffn: int, axes: int, flops_per_s: float, ici_bytes_per_s: float) -> float:
    """Chips Y above which exchanges take longer than arithmetic, F · M / (FLOP/s / link) (Scaling, "Training")."""
    return ffn * axes * ici_bytes_per_s / flops_per_s


def parallelism_bound_by_memory(ffn: int, batch: int, bytes_per_s: float, ici_bytes_per_s: float) -> float:
    """Chips Y above which exchanges take longer than reading, F / (B · bandwidth / link) (Scaling, "Inference")."""
    return ffn * ici_bytes_per_s / (batch * bytes_per_s)
