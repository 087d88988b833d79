"""Configurations of tiny models of each family that mlx-lm has, and their checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

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
