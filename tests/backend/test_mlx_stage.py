"""Sequences of an MLX stage: caches grow, are truncated, stay independent; errors name the cause."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest

from edgepp.backend.base import BackendOptions
from edgepp.backend.device import device
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.mlx.embedding_and_head import MlxEmbeddingAndHead
from edgepp.backend.mlx.stage import MlxStage
from edgepp.errors import StageFault, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.stage_process.speed_probe import measure_speed

EXACT = BackendOptions(exact=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(make_checkpoint(tmp_path_factory.mktemp("model"), TINY))


@pytest.fixture
def stage(checkpoint: Checkpoint) -> MlxStage:
    return MlxBackend().load_stage(checkpoint, LayerRange(1, 3), EXACT)


@pytest.fixture(scope="module")
def ends(checkpoint: Checkpoint) -> MlxEmbeddingAndHead:
    return MlxBackend().load_embedding_and_head(checkpoint, EXACT)


def states(tokens: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(tokens, TINY.hidden)).astype(np.float32)


def with_windows(path: Path) -> Checkpoint:
    """The tiny model with sliding windows of 8 positions in every other layer."""
    make_checkpoint(path, TINY)
    config = json.loads((path / "config.json").read_text())
    config |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
    (path / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(path)


def test_the_attributes_of_a_stage(stage: MlxStage) -> None:
    assert (stage.layers, stage.dtype, stage.hidden_size) == (LayerRange(1, 3), "float32", TINY.hidden)
    assert (stage.device, stage.chunk) == (device(), {"cpu": 64, "metal": 512, "cuda": 1024}[device()])
    assert stage.kv_bytes == 0


def test_a_chunk_is_no_longer_than_the_context(tmp_path: Path) -> None:
    short = Checkpoint.open(make_checkpoint(tmp_path / "short", replace(TINY, context=48)))
    stage = MlxBackend().load_stage(short, LayerRange(0, 4), EXACT)
    assert stage.chunk == 48
    prefill_us, decode_us = measure_speed(stage)
    assert prefill_us >= 1
    assert decode_us >= 1


def test_results_are_contiguous_float32_and_do_not_change_later(stage: MlxStage) -> None:
    stage.open(1, 40)
    first = stage.extend(1, states(5))
    kept = first.copy()
    stage.extend(1, states(30, 1))
    assert (first.shape, first.dtype) == ((5, TINY.hidden), np.float32)
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(first, kept)


def test_chunks_give_what_one_pass_gives(stage: MlxStage) -> None:
    whole, hidden = 1, states(20)
    stage.open(whole, 20)
    expected = stage.extend(whole, hidden)
    stage.open(2, 20)
    parts = [stage.extend(2, part) for part in (hidden[:7], hidden[7:8], hidden[8:])]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_stage_takes_half_precision_hidden_states(stage: MlxStage, dtype: Any) -> None:
    half = states(4).astype(dtype)
    stage.open(1, 8)
    stage.open(2, 8)
    np.testing.assert_array_equal(stage.extend(1, half), stage.extend(2, half.astype(np.float32)))


def test_sequences_do_not_see_each_other(stage: MlxStage) -> None:
    hidden = states(6)
    stage.open(1, 8)
    alone = [stage.extend(1, hidden[n : n + 1]) for n in range(6)]
    stage.open(2, 8)
    stage.open(3, 8)
    for n in range(6):
        stage.extend(3, states(1, seed=n + 10))
        np.testing.assert_array_equal(stage.extend(2, hidden[n : n + 1]), alone[n])


@pytest.mark.parametrize("length", [0, 1, 5, 9])
def test_a_truncated_sequence_continues_as_if_nothing_had_followed(stage: MlxStage, length: int) -> None:
    hidden = states(12)
    stage.open(1, 20)
    stage.extend(1, hidden[:length]) if length else None
    expected = stage.extend(1, hidden[9:])
    stage.open(2, 20)
    stage.extend(2, hidden[:9])
    stage.truncate(2, length)
    assert stage.length(2) == length
    np.testing.assert_allclose(stage.extend(2, hidden[9:]), expected, rtol=1e-5, atol=1e-6)


def test_windows_are_truncated_only_before_they_have_moved(tmp_path: Path) -> None:
    stage = MlxBackend().load_stage(with_windows(tmp_path), LayerRange(0, 1), EXACT)
    stage.open(1, 32)
    stage.extend(1, states(6))
    stage.truncate(1, 4)
    stage.extend(1, states(8))
    with pytest.raises(StageFault, match="RotatingKVCache of 12 positions cannot go back to 10"):
        stage.truncate(1, 10)
    stage.truncate(1, 12)  # nothing to drop
    assert stage.length(1) == 12
    stage.truncate(1, 0)  # dropping all positions always works
    assert stage.length(1) == 0


def test_kv_bytes_follow_the_sequences(stage: MlxStage) -> None:
    stage.open(1, 300)
    stage.extend(1, states(3))
    one_step = 2 * 2 * TINY.kv_heads * TINY.head_size * 256 * 4  # layers, K and V, positions, float32
    assert stage.kv_bytes == one_step
    stage.extend(1, states(280))
    assert stage.kv_bytes > one_step
    stage.free(1)
    stage.free(1)
    assert stage.kv_bytes == 0


def test_a_sequence_opened_again_is_empty(stage: MlxStage) -> None:
    stage.open(1, 8)
    first = stage.extend(1, states(3))
    stage.open(1, 8)
    assert stage.length(1) == 0
    np.testing.assert_array_equal(stage.extend(1, states(3)), first)


def test_faults_name_the_cause(stage: MlxStage) -> None:
    with pytest.raises(StageFault, match="layers 1-2 hold no sequence 7"):
        stage.extend(7, states(1))
    with pytest.raises(StageFault, match=f"513 positions are more than the model's context of {TINY.context}"):
        stage.open(1, TINY.context + 1)
    stage.open(1, 4)
    stage.extend(1, states(3))
    with pytest.raises(StageFault, match="would have 5 positions, and it was opened for 4"):
        stage.extend(1, states(2))
    with pytest.raises(StageFault, match="cannot be cut to 4"):
        stage.truncate(1, 4)
    for wrong in (states(1)[:, :9], states(1)[0], states(0)):
        with pytest.raises(StageFault, match="hidden states of shape"):
            stage.extend(1, np.ascontiguousarray(wrong))
    with pytest.raises(StageFault, match="dtype float64"):
        stage.extend(1, states(1).astype(np.float64))
    assert stage.length(1) == 3


def test_a_sequence_that_memory_cannot_hold_is_not_opened(stage: MlxStage, monkeypatch: pytest.MonkeyPatch) -> None:
    step = stage._sample.bytes_at(1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * step))
    stage.open(1, 300)  # two steps of 256 positions
    stage.open(2, 200)
    with pytest.raises(StageFault, match="of KV cache in layers 1-2"):
        stage.open(3, 10)
    stage.free(2)
    stage.open(3, 10)


def test_a_failed_step_drops_its_sequence(stage: MlxStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate 17 bytes.")

    stage.open(1, 8)
    stage.extend(1, states(2))
    monkeypatch.setattr(stage._model, "_model", fail)
    with pytest.raises(StageFault, match=r"layers 1-2 failed at position 2: .*Unable to allocate"):
        stage.extend(1, states(1))
    with pytest.raises(StageFault, match="no sequence 1"):
        stage.length(1)


def test_embedding_and_head_check_their_arguments(ends: MlxEmbeddingAndHead) -> None:
    with pytest.raises(UsageError, match=f"from 0 to {TINY.vocabulary - 1}"):
        ends.embed([3, TINY.vocabulary])
    with pytest.raises(StageFault, match="shape"):
        ends.logits(states(2)[:, :5])
    logits = ends.logits(states(2))
    assert (logits.shape, logits.dtype) == ((2, TINY.vocabulary), np.float32)
    np.testing.assert_array_equal(ends.embed([4, 5], 100), ends.embed([4, 5]))


def test_exact_means_float32_for_any_stored_dtype(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, replace(TINY, dtype="float16")))
    stage = MlxBackend().load_stage(checkpoint, LayerRange(0, 4), EXACT)
    stage.open(1, 4)
    assert (stage.dtype, stage.extend(1, states(1)).dtype) == ("float32", np.float32)
