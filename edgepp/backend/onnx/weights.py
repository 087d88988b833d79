"""MLX's linear weights in the layout of ONNX Runtime's MatMulNBits, without a copy where the codes agree.

MLX stores a weight as ``scale * code + bias`` with one scale and one bias per group. MatMulNBits computes
``scale * (code - zero_point)`` with an integer zero point. With ``zero_point = round(-bias / scale)`` each group keeps
a ``residue = bias + scale * zero_point``: negligible where MLX chose the biases, up to half a step of the code in
weights that come from other formats. The residue times the sum of the input over the group is added, which is exact.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepp.errors import ModelError
from edgepp.model.weights.checkpoint import Array, Checkpoint

CONVERTED_GROUP = 32
"""Group size of unquantised weights that are converted to 8 bits."""

_MAX_RESIDUE = 0.1
"""Largest residue in steps of a 4-bit code: above MLX's rounding of biases to bfloat16 (0.07), far below a half."""

_ROWS = 4096  # rows converted at a time, so that temporary arrays stay small


@dataclass(frozen=True)
class NBits:
    """One linear (N, K), or several stacked, in the layout of MatMulNBits; G = K / group_size."""

    bits: int
    group_size: int
    codes: Array
    """(N, G, group_size * bits / 8) uint8."""
    scales: Array
    """(N, G) float32."""
    zero_points: Array | None
    """(N, ceil(G * bits / 8)) uint8; None where all are the default, the middle of the range."""
    residue: Array | None
    """(N, G) float32; None where it is negligible."""

    @property
    def rows(self) -> int:
        """N, the number of outputs."""
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        """K, the number of inputs."""
        return int(self.codes.shape[1]) * self.group_size


def quantised(checkpoint: Checkpoint, modules: Sequence[str], *, max_residue: float = _MAX_RESIDUE) -> NBits:
    """Linears ``modules`` of one quantisation, stacked; residue up to ``max_residue`` steps of a 4-bit code is dropped.

    Raises:
        ModelError: shapes or dtypes of the tensors do not fit each other.
    """
    parts = [_stored(checkpoint, module).rows(slice(None)) for module in modules]
    bits = 4 if parts[0].bits <= 4 else 8
    codes = _stack([part.nbits(bits) for part in parts])
    scales, biases = _stack([part.scales for part in parts]), _stack([part.biases for part in parts])
    zero_points, residue = _integer_zero_points(scales, biases, bits, max_residue)
    return NBits(bits, parts[0].group_size, codes, scales, _pack(zero_points, bits), residue)


def converted(checkpoint: Checkpoint, modules: Sequence[str]) -> NBits:
    """Unquantised linears ``modules``, stacked and rounded to 8 bits, symmetrically in groups of ``CONVERTED_GROUP``.

    Raises:
        ModelError: shapes or dtypes of the tensors do not fit each other.
    """
    sources = [_matrix(checkpoint, module) for module in modules]
    _check_stackable(sources)
    rows, columns = sum(len(source) for source in sources), sources[0].shape[1]
    codes = _memory((rows, columns // CONVERTED_GROUP, CONVERTED_GROUP), np.uint8)
    scales = np.empty(codes.shape[:2], np.float32)
    done = 0
    for source in sources:
        for start in range(0, len(source), _ROWS):
            block = source[start : start + _ROWS].astype(np.float32).reshape(-1, *codes.shape[1:])
            step = np.abs(block).max(-1) / 127
            step[step == 0] = 1
            target = slice(done, done + len(block))
            scales[target] = step
            codes[target] = np.rint(block / step[..., None]) + 128
            done += len(block)
    return NBits(8, CONVERTED_GROUP, codes, scales, None, None)


def dense(checkpoint: Checkpoint, modules: Sequence[str]) -> Array:
    """Linears ``modules``, all quantised alike or not at all, as one float32 matrix (K, N).

    Raises:
        ModelError: shapes or dtypes of the tensors do not fit each other.
    """
    _check_stackable([_matrix(checkpoint, module) for module in modules])
    rows = [len(checkpoint.array(f"{module}.weight")) for module in modules]
    stored = [StoredRows(checkpoint, module) for module in modules]
    columns = stored[0].read(slice(0, 1)).shape[1]
    matrix = _memory((columns, sum(rows)), np.float32)
    done = 0
    for part, height in zip(stored, rows, strict=True):
        for start in range(0, height, _ROWS):
            block = part.read(slice(start, start + _ROWS))
            matrix[:, done : done + len(block)] = block.T
            done += len(block)
    return matrix


class StoredRows:
    """Rows of a linear or embedding as they are stored; ``read`` converts some of them."""

    def __init__(self, checkpoint: Checkpoint, module: str) -> None:
        """Find the tensors of ``module``, without reading them.

        Raises:
            ModelError: shapes or dtypes of the tensors do not fit each other.
        """
        self._matrix = _matrix(checkpoint, module)
        self._affine = None if checkpoint.quantisation(module) is None else _stored(checkpoint, module)

    def read(self, rows: slice | Array) -> Array:
        """``rows`` as float32 (R, K): ``scale * code + bias`` where the weights are quantised."""
        if self._affine is None:
            return self._matrix[rows].astype(np.float32)
        part = self._affine.rows(rows)
        codes = unpack(part.words, part.bits).astype(np.float32)
        values = codes.reshape(*part.scales.shape, part.group_size)
        values *= part.scales[..., None]
        values += part.biases[..., None]
        return values.reshape(codes.shape)


def rows_of(checkpoint: Checkpoint, module: str, rows: slice | Array) -> Array:
    """Rows of the linear or embedding ``module`` as float32 (R, K).

    Raises:
        ModelError: shapes or dtypes of the tensors do not fit each other.
    """
    return StoredRows(checkpoint, module).read(rows)


def unpack(words: Array, bits: int) -> Array:
    """Codes (R, K) uint8 of MLX's packed (R, K * bits / 32) uint32: each row is a little-endian stream of bits."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw
    if bits == 4:
        return np.stack((raw & 15, raw >> 4), axis=-1).reshape(len(raw), -1)
    stream = np.unpackbits(raw, axis=-1, bitorder="little").reshape(len(raw), -1, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


@dataclass(frozen=True)
class _Affine:
    """Rows of one linear as MLX stores them, with scales and biases (N, G)."""

    bits: int
    group_size: int
    words: Array
    scales: Array
    biases: Array

    def rows(self, rows: slice | Array) -> _Affine:
        """Some of the rows, with scales and biases converted to float32."""
        scales, biases = self.scales[rows].astype(np.float32), self.biases[rows].astype(np.float32)
        return _Affine(self.bits, self.group_size, self.words[rows], scales, biases)

    def nbits(self, bits: int) -> Array:
        """Codes of ``bits`` bits, 4 or 8, as uint8 (N, G, group_size * bits / 8); MLX's bytes where the bits agree."""
        if self.bits == bits:
            raw = self.words.view(np.uint8)
        else:
            codes = unpack(self.words, self.bits)
            raw = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
        return raw.reshape(*self.scales.shape, -1)


def _stored(checkpoint: Checkpoint, module: str) -> _Affine:
    quantisation = checkpoint.quantisation(module)
    if quantisation is None:
        raise ModelError(f"{module} is not quantised, unlike the linears that are stacked with it")
    words = _matrix(checkpoint, module)
    scales, biases = (checkpoint.array(f"{module}.{part}") for part in ("scales", "biases"))
    bits, group_size = quantisation.bits, quantisation.group_size
    columns = words.shape[-1] * 32 // bits
    if words.dtype != np.uint32 or scales.shape != (len(words), columns / group_size) or biases.shape != scales.shape:
        raise ModelError(f"{module} is not quantised in {bits} bits and groups of {group_size}, as config.json says")
    return _Affine(bits, group_size, words, scales, biases)


def _matrix(checkpoint: Checkpoint, module: str) -> Array:
    weight = checkpoint.array(f"{module}.weight")
    if weight.ndim != 2:
        raise ModelError(f"{module} has a weight of shape {weight.shape}, not a matrix")
    return weight


def _check_stackable(parts: Sequence[Array]) -> None:
    if len({part.shape[1:] for part in parts}) > 1:
        raise ModelError("linears with the same input differ in width: the model is damaged", "pull the model again")


def _stack(parts: Sequence[Array]) -> Array:
    _check_stackable(parts)
    if len(parts) == 1:
        return parts[0]
    stacked = _memory((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    return np.concatenate(parts, out=stacked)


def _memory(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array in pages of its own, which go back to the system with the array, unlike memory of the heap."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    return np.frombuffer(pages, dtype).reshape(shape)


def _integer_zero_points(scales: Array, biases: Array, bits: int, max_residue: float) -> tuple[Array, Array | None]:
    steps = np.divide(-biases, scales, out=np.zeros_like(biases), where=scales != 0)
    zero_points = np.clip(np.rint(steps), 0, (1 << bits) - 1)
    residue = biases + scales * zero_points
    allowed = max_residue * 2.0 ** (bits - 4) * np.abs(scales)
    return zero_points.astype(np.uint8), residue if (np.abs(residue) > allowed).any() else None


def _pack(zero_points: Array, bits: int) -> Array | None:
    if (zero_points == 1 << (bits - 1)).all():
        return None
    if bits == 8:
        return zero_points
    even = np.pad(zero_points, ((0, 0), (0, zero_points.shape[1] % 2)))
    packed: Array = even[:, 0::2] | (even[:, 1::2] << 4)
    return packed
