"""One rank's part of an mlx-lm model's decoder layers, with a reduction over the ranks after each half of a layer.

MLX evaluates each half when its partial sum is needed. So the sums go over edgepp's own encrypted links, and not over
the links of ``mx.distributed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from edgepp.backend.loader import Reduction
from edgepp.errors import ModelError
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint


class _ReducedHalf(nn.Module):  # type: ignore[misc]
    """Attention or MLP of a layer, whose result is the sum over all ranks."""

    def __init__(self, half: Any, reduction: Reduction) -> None:
        super().__init__()
        self._half = half
        self._reduction = reduction

    def __call__(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        """The sum (B, T, D), over all ranks, of the results of the half for ``hidden`` (B, T, D)."""
        part = self._half(hidden, *args, **kwargs)
        partial = np.array(part.astype(mx.float32)).reshape(-1, part.shape[-1])
        total = np.empty_like(partial)
        self._reduction(partial, total)
        return mx.array(total).reshape(part.shape).astype(part.dtype)


def reduce_halves(layers: Sequence[Any], checkpoint: ShardedCheckpoint, reduction: Reduction) -> None:
    """Let ``layers``, which hold the rank's weights, compute the rank's heads and add up each half over all ranks.

    Raises:
        ModelError: the attention of a layer has other numbers of heads than the configuration.
    """
    model = checkpoint.settings
    kv_heads = len(checkpoint.share.kv_heads)
    for layer in layers:
        attention = layer.self_attn
        if (attention.n_heads, attention.n_kv_heads) != (model.heads, model.kv_heads):
            raise ModelError(
                f"mlx-lm's layers of family '{model.family}' cannot be shared between ranks",
                "leave --tensor out, or choose another model",
            )
        attention.n_heads = model.heads // model.kv_heads * kv_heads
        attention.n_kv_heads = kv_heads
        layer.self_attn = _ReducedHalf(attention, reduction)
        layer.mlp = _ReducedHalf(layer.mlp, reduction)


def part_of(checkpoint: ShardedCheckpoint, name: str) -> Any:
    """The rank's part of the tensor ``name``, read and copied into memory.

    Raises:
        ModelError: the tensor is not on this disk.
    """
    array = np.ascontiguousarray(checkpoint.array(name))
    if array.dtype == ml_dtypes.bfloat16:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)
