"""MLX's weights in the layout of MatMulNBits: the products use the values of mx.dequantize."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from edgepp.backend.onnx.weights import NBits, converted, dense, quantised, rows_of, unpack
from edgepp.errors import ModelError
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint

Array = npt.NDArray[Any]

Q_PROJ = "model.layers.0.self_attn.q_proj"
QKV = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]


def make(path: Path, bits: int | None = 4, **changes: Any) -> Checkpoint:
    group_size = None if bits is None else 32
    return Checkpoint.open(make_checkpoint(path, replace(TINY, bits=bits, group_size=group_size, **changes)))


def dequantised(checkpoint: Checkpoint, module: str) -> Array:
    q = checkpoint.quantisation(module)
    assert q is not None
    words = mx.array(np.array(checkpoint.array(f"{module}.weight")))
    scales, biases = (
        mx.array(checkpoint.array(f"{module}.{part}").astype(np.float32)) for part in ("scales", "biases")
    )
    return np.array(mx.dequantize(words, scales, biases, group_size=q.group_size, bits=q.bits))


def codes_of(weight: NBits) -> Array:
    raw = weight.codes.reshape(weight.rows, -1)
    codes = raw if weight.bits == 8 else np.stack((raw & 15, raw >> 4), -1)
    return codes.reshape(*weight.scales.shape, weight.group_size).astype(np.float32)


def zero_points_of(weight: NBits) -> Array:
    if weight.zero_points is None:
        return np.full(weight.scales.shape, 1 << (weight.bits - 1), np.float32)
    packed = weight.zero_points
    points = packed if weight.bits == 8 else np.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)
    return points[:, : weight.scales.shape[1]].astype(np.float32)


def values(weight: NBits) -> Array:
    """The matrix that MatMulNBits and the correction multiply by, (N, K)."""
    spread = weight.scales[..., None] * (codes_of(weight) - zero_points_of(weight)[..., None])
    if weight.residue is not None:
        spread = spread + weight.residue[..., None]
    return spread.reshape(weight.rows, weight.columns)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_width_of_code_dequantises_as_mlx_does(bits: int, tmp_path: Path) -> None:
    checkpoint = make(tmp_path, bits)
    expected = dequantised(checkpoint, Q_PROJ)
    np.testing.assert_allclose(rows_of(checkpoint, Q_PROJ, slice(None)), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(values(quantised(checkpoint, [Q_PROJ], max_residue=0)), expected, rtol=1e-5, atol=1e-6)


def test_words_unpack_as_a_little_endian_stream() -> None:
    codes = np.arange(64, dtype=np.uint8) % 8
    stream = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :3].reshape(-1)
    words = np.packbits(stream, bitorder="little").view(np.uint32)[None]
    np.testing.assert_array_equal(unpack(words, 3), codes[None])


def test_four_and_eight_bit_codes_are_the_mapped_file_itself(tmp_path: Path) -> None:
    for bits in (4, 8):
        checkpoint = make(tmp_path / str(bits), bits)
        assert np.shares_memory(
            quantised(checkpoint, [Q_PROJ]).codes, checkpoint.array(f"{Q_PROJ}.weight").view(np.uint8)
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_biases_that_mlx_chose_need_no_correction_by_default(dtype: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path, dtype=dtype)
    assert quantised(checkpoint, QKV).residue is None
    expected = dequantised(checkpoint, Q_PROJ)
    np.testing.assert_allclose(values(quantised(checkpoint, [Q_PROJ], max_residue=1e-6)), expected, atol=1e-6)


def test_stacked_linears_follow_each_other(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    stacked = values(quantised(checkpoint, QKV))
    np.testing.assert_array_equal(stacked, np.concatenate([values(quantised(checkpoint, [m])) for m in QKV]))
    np.testing.assert_array_equal(
        dense(checkpoint, QKV).T, np.concatenate([rows_of(checkpoint, m, slice(None)) for m in QKV])
    )


def test_conversion_rounds_by_less_than_half_a_step(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, None)
    weight = converted(checkpoint, QKV)
    expected = np.concatenate([checkpoint.array(f"{m}.weight") for m in QKV])
    apart = np.abs(values(weight) - expected).reshape(*weight.scales.shape, -1)
    assert (apart <= 0.5001 * weight.scales[..., None]).all()
    assert weight.bits == 8


def test_a_group_of_equal_weights_survives(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    tensors = dict(mx.load(str(tmp_path / "model.safetensors")))
    tensors[f"{Q_PROJ}.scales"] = mx.zeros_like(tensors[f"{Q_PROJ}.scales"])
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    checkpoint = Checkpoint.open(tmp_path)
    np.testing.assert_allclose(values(quantised(checkpoint, [Q_PROJ])), dequantised(checkpoint, Q_PROJ))


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_tensors_that_do_not_fit_each_other_are_a_model_error(part: str, tmp_path: Path) -> None:
    make(tmp_path)
    tensors = dict(mx.load(str(tmp_path / "model.safetensors")))
    tensors[f"{Q_PROJ}.{part}"] = tensors[f"{Q_PROJ}.{part}"][:, :1]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    with pytest.raises(ModelError, match="q_proj"):
        quantised(Checkpoint.open(tmp_path), [Q_PROJ])


def test_linears_of_different_width_are_not_stacked(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, None)
    mixed = [Q_PROJ, "model.layers.0.mlp.down_proj"]
    for stack in (converted, dense):
        with pytest.raises(ModelError, match="width"):
            stack(checkpoint, mixed)
