"""Float32 arithmetic over weights that stay stored in half precision.

MLX promotes a half-precision weight that is multiplied by float32 hidden states: this is exact, and a stage takes no
more memory than its checkpoint. Two modules are replaced: an embedding, whose rows would be half precision, and a
linear with a large matrix, which MLX would copy to float32 as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.switch_layers import SwitchLinear

_BLOCK = 1 << 23
"""Number of weights that are cast at a time: 32 MiB of float32."""


def is_half(array: Any) -> bool:
    """Whether an MLX array is float16 or bfloat16."""
    return array.dtype in (mx.float16, mx.bfloat16)


class FloatEmbedding(nn.Module):  # type: ignore[misc]
    """An embedding that returns float32 rows and computes float32 products."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight

    def __call__(self, tokens: Any) -> Any:
        """Float32 rows (B, T, D) of the table for ``tokens`` (B, T)."""
        return self.weight[tokens].astype(mx.float32)

    def as_linear(self, hidden: Any) -> Any:
        """Float32 logits (B, T, V) of ``hidden`` (B, T, D), where the output head is the embedding."""
        return product(hidden, self.weight)


class FloatLinear(nn.Module):  # type: ignore[misc]
    """A linear whose weight is cast to float32 block by block."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        if "bias" in linear:
            self.bias = linear.bias

    def __call__(self, hidden: Any) -> Any:
        """``hidden @ weight.T + bias`` in float32."""
        found = product(hidden, self.weight)
        return found + self.bias if "bias" in self else found


def widen(model: Any) -> Any:
    """Replace half-precision embeddings and large half-precision linears of ``model``; returns the model."""
    model.update_modules(tree_map(_wide, model.leaf_modules(), is_leaf=nn.Module.is_module))
    return model


def is_promoted_in_use(model: Any) -> Callable[[str], bool]:
    """A predicate of parameter names: whether the weight may stay in half precision, as products promote it."""
    kinds = (nn.Linear, nn.Embedding, SwitchLinear)
    names = {f"{path}.weight" for path, module in model.named_modules() if type(module) in kinds}
    return names.__contains__


def _wide(module: Any) -> Any:
    if type(module) is nn.Embedding and is_half(module.weight):
        return FloatEmbedding(module)
    if type(module) is nn.Linear and is_half(module.weight) and module.weight.size > _BLOCK:
        return FloatLinear(module)
    return module


def product(hidden: Any, weight: Any) -> Any:
    """Float32 ``hidden @ weight.T`` (…, N) of ``hidden`` (…, K) and half-precision ``weight`` (N, K), in blocks."""
    rows = max(1, _BLOCK // weight.shape[1])
    pieces = []
    for start in range(0, weight.shape[0], rows):
        piece = hidden @ weight[start : start + rows].astype(mx.float32).T
        mx.eval(piece)  # otherwise the copies of all blocks would be in memory at once
        pieces.append(piece)
    return mx.concatenate(pieces, axis=-1)
