"""Rooflines: what memory, arithmetic and links allow at best, one formula a function.

Bytes, seconds, bytes/s and FLOP/s throughout, never GB, ms or Mbit. "Scaling" in a source stands for J. Austin and
others, *How To Scale Your Model* (2025), https://jax-ml.github.io/scaling-book, by the name of its chapter;
"Together-LLM" for the bandwidth arithmetic of that pipeline over gRPC (2024). Where these slipped, the right figure
stands in the tests (``test_origin_figures``) with a note.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgepp.model.cards import Shape

# The model


def parameters(shape: Shape) -> int:
    """Weights of the model's matrices: 2D·NH + 2D·KH + 3DF a layer, and V·D once or twice (Scaling, "Transformers")."""
    layer = sum(rows * columns for rows, columns in shape.layer_matrices().values())
    return shape.layers * layer + (1 if shape.tied else 2) * shape.vocabulary * shape.hidden


def token_flops(weights: float) -> float:
    """FLOPs of one token's forward pass, 2 a weight; attention over the context left out (Scaling, "Transformers")."""
    return 2 * weights


def kv_token_bytes(shape: Shape, item_bytes: float) -> float:
    """Bytes of one position's keys and values in all layers, 2·K·H·L items (Scaling, "Inference")."""
    return 2 * shape.kv_heads * shape.head_size * shape.layers * item_bytes


# One step


def read_s(size: float, bytes_s: float, chips: int = 1) -> float:
    """Seconds in which ``chips`` memories of ``bytes_s`` each, read in parallel, deliver ``size`` bytes."""
    return size / (chips * bytes_s)


def compute_s(flops: float, flops_s: float, chips: int = 1, utilisation: float = 1.0) -> float:
    """Seconds for ``flops`` on ``chips`` of ``flops_s`` each, of which ``utilisation`` is reached."""
    return flops / (chips * flops_s * utilisation)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one decode step by what they go into; arithmetic hides behind the weights' way, or they behind it."""

    weights_s: float
    kv_s: float
    flops_s: float

    @property
    def total_s(self) -> float:
        """KV, since attention has next to no arithmetic to hide behind, and the longer of weights and FLOPs."""
        return self.kv_s + max(self.weights_s, self.flops_s)

    @property
    def limit(self) -> str:
        """The longest of the three: ``weights``, ``KV`` or ``FLOPs``."""
        return max(("weights", self.weights_s), ("KV", self.kv_s), ("FLOPs", self.flops_s), key=lambda part: part[1])[0]


def decode_step(
    batch: int,
    kv_sequence_bytes: float,
    weight_bytes: float,
    weights: float,
    bytes_s: float,
    flops_s: float,
    chips: int,
) -> StepTime:
    """A decode step of ``batch`` sequences on ``chips`` in parallel, each chip of ``bytes_s`` and ``flops_s``.

    step = batch · KV bytes / bandwidth + max(2 · batch · weights / FLOP/s, weight bytes / bandwidth)
    (Scaling, "Inference").
    """
    return StepTime(
        weights_s=read_s(weight_bytes, bytes_s, chips),
        kv_s=read_s(batch * kv_sequence_bytes, bytes_s, chips),
        flops_s=compute_s(batch * token_flops(weights), flops_s, chips),
    )


def critical_batch(flops_s: float, bytes_s: float, weight_item_bytes: float) -> float:
    """The batch above which arithmetic takes longer than reading the weights (Scaling, "Inference").

    2 · B · P / FLOP/s = P · item / bandwidth, so B = item · FLOP/s / (2 · bandwidth).
    """
    return weight_item_bytes * flops_s / (2 * bytes_s)


def prefill_s(tokens: int, weights: float, flops_s: float, chips: int, utilisation: float) -> float:
    """Seconds to prefill ``tokens``, 2 FLOPs a weight a token (Scaling, "Serving LLaMA 3-70B")."""
    return compute_s(tokens * token_flops(weights), flops_s, chips, utilisation)


# Memory


def chips_needed(size: float, memory: float) -> float:
    """Memories of ``memory`` bytes that ``size`` bytes fill; take the next larger slice that is made."""
    return size / memory


def sequences_that_fit(chips: int, memory: float, weight_bytes: float, kv_sequence_bytes: float) -> int:
    """Sequences whose KV caches fit beside the weights on ``chips`` of ``memory`` bytes each."""
    return max(0, math.floor((chips * memory - weight_bytes) / kv_sequence_bytes))


# Serving


def queries_s(batch: int, step_s: float, answer_tokens: float, chips: int) -> float:
    """Answers a second a chip: batch / (step · tokens · chips) (Scaling, "Serving LLaMA 3-70B")."""
    return batch / (step_s * answer_tokens * chips)


def evicted_tokens_a_step(batch: int, prompt: float, answer: float) -> float:
    """KV tokens that leave a full cache in each step: batch · (prompt + answer) / answer (Scaling, as above).

    Each sequence ends once in ``answer`` steps, and then all its positions go.
    """
    return batch * (prompt + answer) / answer


def prefill_servers(prompt_s: float, step_s: float, batch: int, answer_tokens: float) -> float:
    """Prefill servers that keep one decode server busy (Scaling, as above).

    Decoding ends batch / (step · tokens) answers a second, a prefill server starts 1 / ``prompt_s``.
    """
    return prompt_s * batch / (step_s * answer_tokens)


def flops_a_dollar(flops_s: float, dollars_hour: float) -> float:
    """FLOPs that a dollar rents: FLOP/s · 3600 / price an hour."""
    return flops_s * 3600 / dollars_hour


# Model parallelism within a slice of chips


@dataclass(frozen=True)
class MatmulTime:
    """Seconds of one sharded matrix product by what bounds it."""

    ici_s: float
    """Moving activations between chips."""
    hbm_s: float
    """Reading the weights."""
    flops_s: float


def sharded_matmul(
    batch: int, rows: int, columns: int, chips: int, ici_bytes_s: float, bytes_s: float, flops_s: float,
    item_bytes: float = 2.0,
) -> MatmulTime:  # fmt: skip
    """(B, D) by (D, F), F over all ``chips``: activations move whole, each chip reads its columns (Scaling, as above).

    ICI: item · B · D / link; HBM: item · D · F / (chips · bandwidth); FLOPs: 2 · B · D · F / (chips · FLOP/s).
    """
    return MatmulTime(
        ici_s=item_bytes * batch * rows / ici_bytes_s,
        hbm_s=read_s(item_bytes * rows * columns, bytes_s, chips),
        flops_s=compute_s(2 * batch * rows * columns, flops_s, chips),
    )


def parallelism_bound_by_flops(ffn: int, axes: int, flops_s: float, ici_bytes_s: float) -> float:
    """Chips Y past which communication outlasts arithmetic: Y = F · M / (FLOP/s / link) (Scaling, "Training")."""
    return ffn * axes * ici_bytes_s / flops_s


def parallelism_bound_by_memory(ffn: int, batch: int, bytes_s: float, ici_bytes_s: float) -> float:
    """Chips Y past which exchanges outlast reading weights: Y = F / (B · bandwidth / link) (Scaling, "Inference")."""
    return ffn * ici_bytes_s / (batch * bytes_s)


# A pipeline's links


def hidden_bytes(tokens: int, hidden: int, item_bytes: float) -> float:
    """Bytes of hidden states (T, D) on one hop."""
    return tokens * hidden * item_bytes


def communication_s(total_s: float, computation: float) -> float:
    """The part of ``total_s`` left for communication where communication : computation is 1 : ``computation``."""
    return total_s / (1 + computation)


def required_bytes_s(size: float, total_s: float, hops: int) -> float:
    """Bandwidth with which ``size`` bytes pass ``hops`` links, one after the other, in ``total_s`` (Together-LLM)."""
    return size / (total_s / hops)


def overlapped_s(hop_s: float, hops: int, pieces: int) -> float:
    """Seconds for what takes ``hop_s`` a hop, cut into ``pieces`` that follow each other over ``hops`` links.

    The first piece passes all links, the others arrive behind it: (hops + pieces - 1) · hop / pieces.
    """
    return (hops + pieces - 1) * hop_s / pieces


def speed_kept(pipeline_tok_s: float, alone_tok_s: float) -> float:
    """The share of one machine's decode speed that a pipeline of the same machines keeps."""
    return pipeline_tok_s / alone_tok_s


def codec_gain_s(size: float, ratio: float, bytes_s: float, codec_s: float) -> float:
    """Seconds that a codec saves on one hop: size · (1 - 1/ratio) / bandwidth - codec; negative where it costs."""
    return size * (1 - 1 / ratio) / bytes_s - codec_s


def codec_break_even_bytes_s(ratio: float, codec_bytes_s: float) -> float:
    """The bandwidth below which a codec pays that takes in ``codec_bytes_s``, packing and unpacking together."""
    return (1 - 1 / ratio) * codec_bytes_s
