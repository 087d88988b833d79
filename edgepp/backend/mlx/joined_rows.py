"""Products of a micro-batch with quantised matrices, as rows of one product.

A micro-batch is (B, 1, D), for which MLX's kernels for CUDA compute B products of one row, each of which reads the
matrix. As (1, B, D), a micro-batch is one product, which reads the matrix once.
"""

from __future__ import annotations

from typing import Any

import mlx.nn as nn


def join_rows(model: Any) -> None:
    """Let the quantised linears and embeddings of ``model`` compute the rows of a micro-batch in one product."""
    for module in model.modules():
        if type(module) is nn.QuantizedLinear:
            module.__class__ = _RowsLinear
        elif type(module) is nn.QuantizedEmbedding:
            module.__class__ = _RowsEmbedding


class _RowsLinear(nn.QuantizedLinear):  # type: ignore[misc]
    def __call__(self, x: Any) -> Any:
        """``x @ w.T + bias``; a micro-batch ``x`` (B, 1, D) is computed as (1, B, D)."""
        if x.ndim == 3 and x.shape[1] == 1 < x.shape[0]:
            return super().__call__(x.reshape(1, x.shape[0], -1)).reshape(x.shape[0], 1, -1)
        return super().__call__(x)


class _RowsEmbedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    def as_linear(self, x: Any) -> Any:
        """Logits of ``x``; a micro-batch ``x`` (B, 1, D) is computed as (1, B, D)."""
        if x.ndim == 3 and x.shape[1] == 1 < x.shape[0]:
            return super().as_linear(x.reshape(1, x.shape[0], -1)).reshape(x.shape[0], 1, -1)
        return super().as_linear(x)
