"""Every supported family gives the numbers of the whole model from any number of stages; others are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model

from edgepp.backend.base import BackendOptions
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.mlx.embedding_and_head import MlxEmbeddingAndHead
from edgepp.backend.mlx.stage import MlxStage
from edgepp.errors import ModelError
from edgepp.layers import split_evenly
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}
"""A config.json that most families can read, with the keys of all of them."""

EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
LOCAL_THEN_GLOBAL = ["sliding_attention", "full_attention"] * 2
GRANITE = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
}

FITTING: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-windows": {"model_type": "llama", "layer_types": LOCAL_THEN_GLOBAL, "sliding_window": 6},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8.0},
    "gemma3_text": {"sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8.0},
    "phi3": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 6, "layer_types": LOCAL_THEN_GLOBAL},
    "starcoder2": {},
    "granite": GRANITE,
    "cohere": {"logit_scale": 0.5, "use_qk_norm": False},
    "cohere2": {"sliding_window": 6, "sliding_window_pattern": 2},
    "smollm3": {"no_rope_layer_interval": 2},
    "stablelm": {"use_qkv_bias": False, "partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "exaone4": {"sliding_window": 6, "sliding_window_pattern": "LLG", "rope_scaling": None},
    "gpt_oss": {**EXPERTS, "sliding_window": 6, "layer_types": LOCAL_THEN_GLOBAL},
    "llama4_text": {"intermediate_size_mlp": 48, "no_rope_layers": [1, 1, 1, 0], "use_qk_norm": True},
    "llama4": {
        "text_config": {
            **BASE,
            **EXPERTS,
            "model_type": "llama4",
            "attention_chunk_size": 6,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 48,
            "rope_scaling": None,
            "use_qk_norm": True,
            "num_experts_per_tok": 1,
        }
    },
    "deepseek_v3": {
        **EXPERTS,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "kv_lora_rank": 4,
        "q_lora_rank": 4,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "bailing_moe_linear": {
        **EXPERTS,
        "num_key_value_heads": 4,
        "num_shared_experts": 1,
        "first_k_dense_replace": 0,
        "layer_group_size": 2,
        "group_norm_size": 1,
    },
    "gpt2": {
        "n_ctx": 256,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 4,
        "n_positions": 256,
        "num_key_value_heads": 4,
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_ff_dim": 48,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "qwen3_next": {
        **EXPERTS,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 3,
        "shared_expert_intermediate_size": 24,
        "partial_rotary_factor": 0.5,
    },
}

GEMMA3N = {
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 96,
    "sliding_window": 6,
    "rope_local_base_freq": 1.0,
    "final_logit_softcapping": 1.0,
    "layer_types": LOCAL_THEN_GLOBAL,
    "activation_sparsity_pattern": [0.5] * 4,
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2,
    "altup_coef_clip": 1.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 4,
}

UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3n": ({"text_config": {**BASE, **GEMMA3N, "model_type": "gemma3n"}}, "more than the hidden states"),
    "gemma4_text": (
        {
            "global_head_dim": 16,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 96,
            "hidden_size_per_layer_input": 8,
            "sliding_window": 6,
            "layer_types": LOCAL_THEN_GLOBAL,
        },
        "more than hidden states",
    ),
    "rwkv7": (
        {
            "norm_eps": 1e-5,
            "a_low_rank_dim": 4,
            "v_low_rank_dim": 4,
            "gate_low_rank_dim": 4,
            "decay_low_rank_dim": 4,
        },
        "more than hidden states",
    ),
    "hunyuan": (
        {
            **EXPERTS,
            "moe_topk": 2,
            "num_shared_expert": 1,
            "use_mixed_mlp_moe": True,
            "use_qk_norm": True,
            "use_cla": True,
            "cla_share_factor": 2,
            "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
        },
        "more than hidden states",
    ),
    "iquestloopcoder": ({"loop_num": 2, "loop_window_size": 8}, "once each"),
    "longcat_flash_ngram": (
        {
            **EXPERTS,
            "attention_method": "MLA",
            "zero_expert_type": "identity",
            "zero_expert_num": 2,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 24,
            "moe_topk": 2,
            "n_routed_experts": 4,
            "num_layers": 4,
            "kv_lora_rank": 4,
            "q_lora_rank": 4,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "routed_scaling_factor": 1.0,
            "mla_scale_q_lora": True,
            "mla_scale_kv_lora": True,
            "ngram_vocab_size_ratio": 2,
        },
        "earlier tokens",
    ),
}

PROMPT = [5, 17, 3, 88, 41, 9, 62, 30, 2, 71, 12]
CHUNKS = (PROMPT[:7], PROMPT[7:])
GENERATED = 3


def make_family(folder: Path, name: str, settings: dict[str, Any], dtype: Any = mx.float32) -> Path:
    """A tiny model of a family with random weights, none of them at its neutral value."""
    config = {**BASE, "model_type": name, **settings}
    model_class, arguments = _get_classes(config)
    mx.random.seed(3)
    weights = {
        key: (value + 0.2 * mx.random.normal(value.shape)).astype(dtype)
        for key, value in tree_flatten(model_class(arguments.from_dict(config)).parameters())
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def whole_logits(folder: Path) -> np.ndarray[Any, Any]:
    """mlx-lm's logits of the chunks and of the greedy tokens after them, (T, V)."""
    model, rows = reference.whole_model(folder), []
    cache = make_prompt_cache(model)
    steps = [*CHUNKS, *[None] * GENERATED]
    for step in steps:
        tokens = step or [int(rows[-1][-1].argmax())]
        rows.append(np.array(model(mx.array([tokens]), cache=cache)[0]))
    return np.concatenate(rows)


def piped_logits(ends: MlxEmbeddingAndHead, stages: list[MlxStage]) -> np.ndarray[Any, Any]:
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
    for stages in (1, 2, 3):
        split = split_evenly(checkpoint.num_layers, stages)
        loaded = [backend.load_stage(checkpoint, layers, BackendOptions()) for layers in split]
        logits = piped_logits(ends, loaded)
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max(), f"{stages} stages"
        assert (logits.argmax(-1) == expected.argmax(-1)).all()


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
