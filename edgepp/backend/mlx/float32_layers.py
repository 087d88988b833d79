"""Float32 arithmetic over weights that stay stored in half precision.

MLX promotes a half-precision weight when it meets float32 hidden states: exact, and a stage's memory stays what its
checkpoint takes. Two things need help: an embedding's rows would come out in half precision, and the float32 copy
of a large matrix would lie in memory whole while it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.switch_layers import SwitchLinear

_BLOCK = 1 << 23
"""Weights that are cast at a time: 32 MiB of float32."""


def is_half(array: Any) -> bool:
    """Whether an MLX array is float16 or bfloat16."""
    return array.dtype in (mx.float16, mx.bfloat16)


class FloatEmbedding(nn.Module):  # type: ignore[misc]
    """An embedding whose rows and products are float32."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight

    def __call__(self, tokens: Any) -> Any:
        """Rows of the table, in float32."""
        return self.weight[tokens].astype(mx.float32)

    def as_linear(self, hidden: Any) -> Any:
        """Float32 logits of ``hidden`` where the head is tied to the embedding."""
        return _product(hidden, self.weight)


class FloatLinear(nn.Module):  # type: ignore[misc]
    """A linear whose large weight is cast block by block."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        if "bias" in linear:
            self.bias = linear.bias

    def __call__(self, hidden: Any) -> Any:
        """``hidden @ weight.T + bias`` in float32."""
        product = _product(hidden, self.weight)
        return product + self.bias if "bias" in self else product


def widen(model: Any) -> Any:
    """Make the modules of ``model`` that hold half-precision weights compute in float32; returns the model."""
    model.update_modules(tree_map(_wide, model.leaf_modules(), is_leaf=nn.Module.is_module))
    return model


def stays_stored(model: Any) -> Callable[[str], bool]:
    """Tells of a parameter's name whether it may stay in half precision: the weights that products promote."""
    kinds = (nn.Linear, nn.Embedding, SwitchLinear)
    names = {f"{path}.weight" for path, module in model.named_modules() if type(module) in kinds}
    return names.__contains__


def _wide(module: Any) -> Any:
    if type(module) is nn.Embedding and is_half(module.weight):
        return FloatEmbedding(module)
    if type(module) is nn.Linear and is_half(module.weight) and module.weight.size > _BLOCK:
        return FloatLinear(module)
    return module


def _product(hidden: Any, weight: Any) -> Any:
    rows = max(1, _BLOCK // weight.shape[1])
    pieces = []
    for start in range(0, weight.shape[0], rows):
        piece = hidden @ weight[start : start + rows].astype(mx.float32).T
        mx.eval(piece)  # else the copies of all blocks would be in memory at once
        pieces.append(piece)
    return mx.concatenate(pieces, axis=-1)
