"""Conversion of hidden states between numpy and MLX, and the dtypes that both libraries have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
"""Dtypes that hidden states may have."""

STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names in ``DTYPES`` by the names of the same dtypes in safetensors files."""

begin: Callable[..., None] = mx.async_eval
"""Let the device compute arrays after its earlier work, without waiting for them."""


def from_numpy(hidden: Array, dtype: str) -> Any:
    """Hidden states ``(T, D)`` in any supported dtype as ``(1, T, D)`` in ``dtype``; one copy.

    Raises:
        StageFault: the dtype is not one of ``DTYPES``.
    """
    if hidden.dtype.name not in DTYPES:
        raise StageFault(f"hidden states of dtype {hidden.dtype.name} are not supported")
    if hidden.dtype == ml_dtypes.bfloat16:
        array = mx.array(hidden.view(np.uint16)).view(mx.bfloat16)
    else:
        array = mx.array(hidden)
    return array[None].astype(DTYPES[dtype])


def to_numpy(array: Any, *beside: Any) -> Array:
    """An array ``(1, T, D)`` as C-contiguous ``(T, D)``: on a CPU a view of MLX's own memory, not a copy.

    The array is evaluated together with the arrays in ``beside``.
    """
    plain = mx.contiguous(array[0])
    if array.dtype != mx.bfloat16:
        mx.eval(plain, *beside)
        return np.asarray(plain)
    plain = plain.view(mx.uint16)  # numpy has no bfloat16 of its own, so the bits are reinterpreted
    mx.eval(plain, *beside)
    view: Array = np.asarray(plain).view(ml_dtypes.bfloat16)
    return view
