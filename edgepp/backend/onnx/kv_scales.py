"""Scales for keys and values in 8 bits, from a layer's weights alone.

ONNX Runtime's 8-bit cache has one fixed scale per channel, for all positions and sequences. A stage has no text to
measure ranges with, and results must not depend on earlier requests. But the input of the projections comes from an RMS
norm, so the rows of their weights bound the range of each channel. With such scales, 4 bits would round most numbers to
zero.
"""

from __future__ import annotations

import math

import numpy as np

from edgepp.backend.onnx.architecture import Architecture
from edgepp.backend.onnx.weights import rows_of
from edgepp.model.weights.checkpoint import Array, Checkpoint

_REACH = 8.0
"""Assumed range of a channel, as a multiple of its root mean square over inputs of all directions.

In text, most channels reach 2 times the root mean square, and none more than 8 times.
"""


def scales(checkpoint: Checkpoint, architecture: Architecture, layer: int) -> tuple[Array, Array]:
    """Quantisation steps of 8-bit keys and of 8-bit values, each float32 (1, kv_heads, 1, head_dim).

    Raises:
        ModelError: a tensor is absent, or shapes or dtypes of tensors do not fit each other.
    """
    module = f"model.layers.{layer}"
    norm = checkpoint.array(f"{module}.input_layernorm.weight").astype(np.float32)
    attention = f"{module}.self_attn"
    if architecture.head_norms:
        weight = np.abs(checkpoint.array(f"{attention}.k_norm.weight").astype(np.float32))
        keys = np.tile(weight * min(_REACH, math.sqrt(architecture.head_dim)), (architecture.kv_heads, 1))
    else:
        keys = _reach(checkpoint, architecture, f"{attention}.k_proj", norm)
    first, second = np.split(keys, 2, axis=-1)  # rotation mixes the two halves
    values = _reach(checkpoint, architecture, f"{attention}.v_proj", norm)
    return _steps(np.tile(np.hypot(first, second), 2)), _steps(values)


def _reach(checkpoint: Checkpoint, architecture: Architecture, module: str, norm: Array) -> Array:
    """Largest absolute output, (kv_heads, head_dim), of a linear whose input is an RMS norm of weight ``norm``."""
    weight = np.abs(rows_of(checkpoint, module, slice(None)) * norm)
    # Some tokens have nearly all of their norm in one channel, and their output must fit as well.
    reach = np.maximum(_REACH * np.sqrt((weight**2).sum(-1)), math.sqrt(norm.size) * weight.max(-1))
    if module.rpartition(".")[2] in architecture.biased:
        reach += np.abs(checkpoint.array(f"{module}.bias").astype(np.float32))
    heads: Array = reach.reshape(architecture.kv_heads, architecture.head_dim)
    return heads


def _steps(reach: Array) -> Array:
    steps = np.maximum(reach / 127, np.finfo(np.float32).tiny)
    return np.ascontiguousarray(steps[None, :, None], np.float32)
