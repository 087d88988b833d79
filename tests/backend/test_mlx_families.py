"""Every supported family gives the numbers of the whole model from any number of stages; others are refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from edgepp.backend.base import BackendOptions, EmbeddingAndHead
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.mlx.stage import MlxStage
from edgepp.errors import ModelError
from edgepp.layer_range import split_evenly
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference
from tests.backend.families import EXPERTS, FITTING, UNFIT, make_family

PROMPT = [5, 17, 3, 88, 41, 9, 62, 30, 2, 71, 12]
CHUNKS = (PROMPT[:7], PROMPT[7:])
GENERATED = 3


def whole_logits(folder: Path) -> np.ndarray[Any, Any]:
    """mlx-lm's logits of the chunks and of the greedy tokens after them, (T, V)."""
    model, rows = reference.whole_model(folder), []
    cache = make_prompt_cache(model)
    steps = [*CHUNKS, *[None] * GENERATED]
    for step in steps:
        tokens = step or [int(rows[-1][-1].argmax())]
        rows.append(np.array(model(mx.array([tokens]), cache=cache)[0]))
    return np.concatenate(rows)


def piped_logits(ends: EmbeddingAndHead, stages: Sequence[MlxStage]) -> np.ndarray[Any, Any]:
    """The logits of a pipeline for the same chunks and greedy tokens, (T, V)."""
    rows: list[Any] = []
    for stage in stages:
        stage.open(1, 32)
    for step in [*CHUNKS, *[None] * GENERATED]:
        hidden = ends.embed(step or [int(rows[-1][-1].argmax())], stages[0].length(1))
        for stage in stages:
            hidden = stage.extend(1, hidden)
        rows.append(ends.logits(hidden))
    return np.concatenate(rows)


def check(folder: Path) -> None:
    checkpoint, backend = Checkpoint.open(folder), MlxBackend()
    expected = whole_logits(folder)
    ends = backend.load_embedding_and_head(checkpoint, BackendOptions())
    for stages in (1, 3):  # four layers: the cut between two stages is one of those between three
        split = split_evenly(checkpoint.num_layers, stages)
        loaded = [backend.load_stage(checkpoint, layers, BackendOptions()) for layers in split]
        check_close(piped_logits(ends, loaded), expected, f"{stages} stages")
    ahead, ahead_ends = backend.load_one_ahead(checkpoint, BackendOptions())
    check_close(piped_logits(ahead_ends, [ahead]), expected, "one step ahead")


def check_close(logits: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], how: str) -> None:
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max(), how
    assert (logits.argmax(-1) == expected.argmax(-1)).all(), how


@pytest.mark.parametrize("family", FITTING)
def test_stages_give_the_whole_models_logits(family: str, tmp_path: Path) -> None:
    settings = FITTING[family]
    check(make_family(tmp_path / "model", settings.get("model_type", family), settings))


@pytest.mark.parametrize("family", FITTING)
def test_the_spelling_of_transformers_5_gives_the_same_model(family: str, tmp_path: Path) -> None:
    """Rotations inside ``rope_parameters``: families that read only the older keys would silently use a default."""
    settings = FITTING[family]
    inner = settings.get("text_config")
    older = {"text_config": {**inner, "rope_theta": 777.0}} if inner else {"rope_theta": 777.0}
    folder = make_family(tmp_path / "model", settings.get("model_type", family), {**settings, **older})
    hidden = np.random.default_rng(0).normal(size=(11, 32)).astype(np.float32)
    expected, fingerprint = first_stage(folder, hidden)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] if inner else config
    text["rope_parameters"] = {"rope_type": "default", **(text.get("rope_scaling") or {}), "rope_theta": 777.0}
    text["rope_theta"] = text["rope_scaling"] = None
    (folder / "config.json").write_text(json.dumps(config))
    result, other = first_stage(folder, hidden)
    np.testing.assert_array_equal(result, expected)
    assert other == fingerprint


def first_stage(folder: Path, hidden: Any) -> tuple[Any, str]:
    checkpoint = Checkpoint.open(folder)
    layers = split_evenly(checkpoint.num_layers, 1)[0]
    stage = MlxBackend().load_stage(checkpoint, layers, BackendOptions())
    stage.open(1, 32)
    return stage.extend(1, hidden), checkpoint.fingerprint


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "deepseek_v3"])
def test_half_precision_weights_give_float32_logits_on_a_cpu(family: str, tmp_path: Path) -> None:
    check(make_family(tmp_path / "model", family, FITTING[family], mx.bfloat16))


@pytest.mark.parametrize(("mode", "group_size", "bits"), [("affine", 32, 3), ("mxfp4", 32, 4), ("nvfp4", 16, 4)])
def test_quantised_experts_give_the_whole_models_logits(mode: str, group_size: int, bits: int, tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "moe_intermediate_size": 64}
    folder = make_family(tmp_path / "model", "qwen3_moe", {**EXPERTS, **wide}, mx.bfloat16)
    model, config = load_model(folder)
    nn.quantize(model, group_size, bits, mode=mode)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config["quantization"] = {"group_size": group_size, "bits": bits, "mode": mode}
    (folder / "config.json").write_text(json.dumps(config))
    check(folder)


@pytest.mark.parametrize("family", UNFIT)
def test_unsupported_families_are_refused_with_the_reason(family: str, tmp_path: Path) -> None:
    settings, reason = UNFIT[family]
    checkpoint = Checkpoint.open(make_family(tmp_path / "model", family, settings))
    with pytest.raises(ModelError, match=f"'{family}' does not fit a layer pipeline: .*{reason}"):
        MlxBackend().load_embedding_and_head(checkpoint, BackendOptions())


def test_a_family_that_embeds_positions_needs_them(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_family(tmp_path / "model", "gpt2", FITTING["gpt2"]))
    ends = MlxBackend().load_embedding_and_head(checkpoint, BackendOptions())
    with pytest.raises(ModelError, match="embeds positions"):
        ends.embed([1])
    assert not np.array_equal(ends.embed([1], 0), ends.embed([1], 9))
