"""Bytes of MLX's keys and values, in the order of ``kv_layout``, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from edgepp.backend.base import KvChunk

_NUMPY_DTYPES = {
    mx.float32: np.float32,
    mx.float16: np.float16,
    mx.bfloat16: np.uint16,  # numpy has no bfloat16 of its own, so the bits are taken
    mx.uint32: np.uint32,
}


def bytes_at(arrays: Sequence[Any], row: int, start: int, stop: int) -> bytes:
    """A copy of positions [start, stop) of one row of each of ``arrays``, (rows, heads, room, width).

    MLX's memory is read in place: a computation per array would take ten times as long. No view of the memory is left
    behind, since MLX would then copy the whole cache in the next step instead of adding to the cache.
    """
    bits = [array.view(mx.uint16) if array.dtype == mx.bfloat16 else array for array in arrays]
    mx.eval(bits)
    return b"".join([np.asarray(array)[row, :, start:stop].tobytes() for array in bits])


def arrays_from(piece: KvChunk, like: Sequence[Sequence[Any]], positions: int) -> list[list[Any]]:
    """The arrays (1, heads, positions, width) of each layer in ``piece``; ``like`` has arrays of the same layers."""
    layers: list[list[Any]] = []
    taken = 0
    for arrays in like:
        layers.append([])
        for array in arrays:
            _, heads, _, width = array.shape
            count = heads * positions * width
            numbers = np.frombuffer(piece, _NUMPY_DTYPES[array.dtype], count, taken)
            taken += numbers.nbytes
            copied = mx.array(numbers.reshape(1, heads, positions, width))
            layers[-1].append(copied.view(mx.bfloat16) if array.dtype == mx.bfloat16 else copied)
    return layers
