"""Keys and values in 8 or 4 bits: error, bytes, and families and backends without them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp.backend.base import BackendOptions, StageModel
from edgepp.backend.loader import Backend
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.mlx.kv_cache import QuantisedKV
from edgepp.backend.onnx.architecture import read_architecture
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.backend.onnx.kv_scales import scales
from edgepp.errors import ModelError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import Shape
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Array, Checkpoint
from tests.backend.families import FITTING, make_family

BACKENDS: dict[str, type[Backend]] = {"onnx": OnnxBackend, "mlx": MlxBackend}
WIDE = replace(TINY, hidden=128, head_size=32)
LAYERS = LayerRange(0, 4)
ERRORS = {("onnx", 8): 0.05, ("mlx", 8): 0.01, ("mlx", 4): 0.15}
"""Root mean square of the error of few bits, relative to that of the change that the layers make."""


def load(backend: str, checkpoint: Checkpoint, kv_bits: int | None, layers: LayerRange = LAYERS) -> StageModel:
    return BACKENDS[backend]().load_stage(checkpoint, layers, BackendOptions(exact=True, kv_bits=kv_bits))


def states(rows: int) -> Array:
    return np.random.default_rng(0).normal(size=(rows, WIDE.hidden)).astype(np.float32)


def computed(stage: StageModel, hidden: Array, chunks: list[int]) -> Array:
    """Results of a new sequence for ``hidden`` in chunks."""
    stage.open(1, len(hidden))
    ends = np.cumsum(chunks)
    return np.concatenate([stage.extend(1, hidden[end - n : end]) for n, end in zip(chunks, ends, strict=True)])


def with_config(path: Path, shape: Shape, **changes: Any) -> Checkpoint:
    make_checkpoint(path, shape)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return Checkpoint.open(path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("backend", "kv_bits"), ERRORS)
def test_few_bits_change_little(backend: str, kv_bits: int, family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, replace(WIDE, family=family)))
    hidden, chunks = states(64), [30, 20, *[1] * 14]
    full = computed(load(backend, checkpoint, None), hidden, chunks)
    few = computed(load(backend, checkpoint, kv_bits), hidden, chunks)
    error = np.sqrt(((few - full) ** 2).mean() / ((full - hidden) ** 2).mean())
    assert 0 < error < ERRORS[backend, kv_bits]


@pytest.mark.parametrize(("backend", "kv_bits"), ERRORS)
def test_stages_split_anywhere_give_the_same_numbers(backend: str, kv_bits: int, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, WIDE))
    hidden, chunks = states(24), [16, *[1] * 8]
    whole = computed(load(backend, checkpoint, kv_bits), hidden, chunks)
    parts = hidden
    for layers in (LayerRange(0, 1), LayerRange(1, 4)):
        parts = computed(load(backend, checkpoint, kv_bits, layers), parts, chunks)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize(("backend", "kv_bits", "taken"), [("onnx", 8, 8), ("mlx", 8, 9), ("mlx", 4, 5)])
def test_few_bits_take_few_bytes(backend: str, kv_bits: int, taken: int, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, replace(WIDE, head_size=64)))
    held = []
    for bits in (None, kv_bits):
        stage = load(backend, checkpoint, bits)
        computed(stage, states(256), [256])
        held.append(stage.kv_bytes)
        stage.free(1)
        assert stage.kv_bytes == 0
    assert held[1] * 32 == held[0] * taken  # MLX keeps a float32 scale and bias with each 64 values


def test_a_group_of_64_values_is_preferred_to_one_of_32(tmp_path: Path) -> None:
    sizes = []
    for width in (64, 32):
        checkpoint = Checkpoint.open(make_checkpoint(tmp_path / str(width), replace(TINY, head_size=width)))
        stage = MlxBackend().load_stage(checkpoint, LAYERS, BackendOptions(kv_bits=8))
        sizes.append({cache.group_size for cache in stage._sample.own})
    assert sizes == [{64}, {32}]


def test_sliding_windows_keep_floats(tmp_path: Path) -> None:
    checkpoint = with_config(tmp_path, WIDE, layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=8)
    hidden, chunks = states(24), [16, *[1] * 8]
    full, few = (computed(load("mlx", checkpoint, bits), hidden, chunks) for bits in (None, 8))
    assert 0 < np.abs(few - full).max() < 0.05 * np.abs(full - hidden).max()
    window = load("mlx", checkpoint, 8, LayerRange(0, 1))  # no plain cache here, but in other stages
    np.testing.assert_array_equal(
        computed(window, hidden, chunks), computed(load("mlx", checkpoint, None, LayerRange(0, 1)), hidden, chunks)
    )


def test_unsupported_bits_are_refused(tmp_path: Path) -> None:
    narrow = Checkpoint.open(make_checkpoint(tmp_path / "narrow", TINY))
    with pytest.raises(ModelError, match="width 16 cannot be kept in 8 bits, which takes a multiple of 32"):
        load("mlx", narrow, 8)
    with pytest.raises(ModelError, match="the onnx backend keeps keys and values in float32 or in 8 bits, not in 4"):
        load("onnx", narrow, 4)
    with pytest.raises(UsageError, match="cannot be kept in 5 bits"):
        BackendOptions(kv_bits=5)


def test_a_family_without_plain_caches_cannot_use_few_bits(tmp_path: Path) -> None:
    stage = MlxBackend().load_stage(Checkpoint.open(make_checkpoint(tmp_path, WIDE)), LAYERS, BackendOptions())
    stage._sample.has_plain = False
    with pytest.raises(ModelError, match="'mamba' has no cache of all keys and values"):
        QuantisedKV.fitting(8, stage._sample, "mamba")


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_families_whose_attention_cannot_use_few_bits_are_refused(family: str, tmp_path: Path) -> None:
    settings = FITTING[family] | {"hidden_size": 128, "head_dim": 32}
    checkpoint = Checkpoint.open(make_family(tmp_path / family, family, settings))
    assert load("mlx", checkpoint, None).rewinds is (family == "gemma2")
    with pytest.raises(ModelError, match=f"'{family}' do not run with keys and values in 8 bits"):
        load("mlx", checkpoint, 8)


def test_one_strong_channel_is_not_clipped(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, WIDE))
    strong = np.zeros((1, WIDE.hidden), np.float32)
    strong[0, 7] = 50.0
    hidden = np.concatenate([strong, states(20)])
    full, few = (computed(load("onnx", checkpoint, bits, LayerRange(0, 1)), hidden, [21]) for bits in (None, 8))
    assert np.abs(few - full).max() < 0.05 * np.abs(full - hidden).max()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_scales_cover_the_range_of_keys_and_values(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, replace(WIDE, family=family)))
    whole = MlxBackend().load_stage(checkpoint, LayerRange(0, 1), BackendOptions(exact=True))
    computed(whole, states(200), [200])
    architecture = read_architecture(checkpoint)
    for array, steps in zip(whole._sequences[1].parts()[0], scales(checkpoint, architecture, 0), strict=True):
        assert steps.shape == (1, WIDE.kv_heads, 1, WIDE.head_size)
        farthest = np.abs(np.array(array)[:, :, :200]).max(2, keepdims=True)
        assert (farthest <= 127 * steps).all()
        assert (farthest >= 127 * steps / 20).all()
