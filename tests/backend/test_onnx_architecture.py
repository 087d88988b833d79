"""Models that the ONNX graph supports, and the architecture that is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import initialize_rope

from edgepp.backend.base import BackendOptions
from edgepp.backend.onnx.architecture import Architecture, Rope, read_architecture
from edgepp.backend.onnx.backend import OnnxBackend, fits
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import LLAMA3_ROPE
from edgepp.model.weights.checkpoint import Checkpoint

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
}


def checkpoint(**changes: Any) -> Checkpoint:
    return Checkpoint(Path("model"), CONFIG | changes, {})


def read(**changes: Any) -> Architecture:
    return read_architecture(checkpoint(**changes))


def test_sizes_are_read_and_absent_keys_have_defaults() -> None:
    architecture = read(num_key_value_heads=None, head_dim=None)
    assert (architecture.heads, architecture.kv_heads, architecture.head_dim) == (4, 4, 16)
    assert architecture.tied
    assert not read(tie_word_embeddings=False).tied
    assert read(head_dim=32).head_dim == 32


def test_each_family_has_its_own_biases_and_norms() -> None:
    assert read().biased == frozenset()
    assert read(attention_bias=True).biased == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert read(mlp_bias=True).biased == {"gate_proj", "up_proj", "down_proj"}
    assert read(model_type="qwen2").biased == {"q_proj", "k_proj", "v_proj"}
    assert read(model_type="qwen3").head_norms
    assert not read(model_type="mistral").head_norms


UNFIT: dict[str, dict[str, Any]] = {
    "gemma3": {"model_type": "gemma3"},
    "sliding_attention": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 1024},
    "window of 1024": {"model_type": "mistral", "sliding_window": 1024},
    "window of 512": {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True},
    "type yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "neighbouring pairs": {"rope_traditional": True},
    "mxfp4": {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}},
    "nvfp4": {"quantization": {"bits": 4, "group_size": 32, "lm_head": {"mode": "nvfp4", "bits": 4}}},
    "heads of size 12": {"head_dim": 12},
}


@pytest.mark.parametrize("reason", UNFIT)
def test_unsupported_settings_are_refused_by_name(reason: str) -> None:
    unfit = checkpoint(**UNFIT[reason])
    assert not fits(unfit)
    with pytest.raises(ModelError, match=reason) as refused:
        OnnxBackend().load_stage(unfit, LayerRange(0, 1), BackendOptions())
    assert unfit.family in str(refused.value)
    assert "--backend mlx" in refused.value.hint


@pytest.mark.parametrize(
    "harmless",
    [
        {"model_type": "mistral", "sliding_window": 4096},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 2},
        {"rope_scaling": {"rope_type": "default"}},
        {"quantization": {"bits": 4, "group_size": 64, "lm_head": False}},
    ],
)
def test_settings_without_effect_are_accepted(harmless: dict[str, Any]) -> None:
    assert fits(checkpoint(**harmless))


def test_newer_configurations_nest_the_rotary_embedding() -> None:
    nested = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    rope = read(model_type="qwen3", rope_theta=None, rope_parameters=nested).rope
    assert rope == Rope(16, 5e5, "linear", 2.0)


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 4.0}, dict(LLAMA3_ROPE)])
def test_rotary_tables_turn_a_vector_as_mlx_lm_does(scaling: dict[str, Any] | None) -> None:
    rope = read(rope_theta=500000.0, head_dim=64, rope_scaling=scaling).rope
    x = np.random.default_rng(0).normal(size=(1, 1, 300, 64)).astype(np.float32)
    cos, sin = rope.tables(300)
    a, b = x[..., :32], x[..., 32:]
    turned = np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
    theirs = initialize_rope(64, 500000.0, False, scaling, 4096)
    np.testing.assert_allclose(turned, np.array(theirs(mx.array(x))), atol=1e-4)
