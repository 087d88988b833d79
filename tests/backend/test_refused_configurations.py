"""Configurations that neither backend computes rightly are refused by the name of the key, or read as a bound."""

from __future__ import annotations

from typing import Any

import pytest

from edgepp.errors import ModelError
from edgepp.model.shape import shape_from_config
from tests.backend.test_config_spellings import YARN, settings_of

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("num_hidden_layers", {"num_hidden_layers": 2**31 - 1}),
    ("num_hidden_layers", {"num_hidden_layers": True}),
    ("num_hidden_layers", {"num_hidden_layers": 2.0}),
    ("num_hidden_layers", {"num_hidden_layers": None}),
    ("hidden_size", {"hidden_size": -64}),
    ("vocab_size", {"vocab_size": "300"}),
    ("vocab_size", {"vocab_size": [300]}),
    ("max_position_embeddings", {"max_position_embeddings": "4096"}),
    ("max_position_embeddings", {"max_position_embeddings": 2**40}),
    ("max_position_embeddings", {"max_position_embeddings": 0}),
    ("num_attention_heads", {"num_attention_heads": "four"}),
    ("num_attention_heads", {"num_attention_heads": 0}),
    ("3 key-value heads", {"num_key_value_heads": 3}),
    ("head_dim", {"num_attention_heads": 100, "num_key_value_heads": 100}),
    ("intermediate_size", {"intermediate_size": {}}),
    ("rms_norm_eps", {"rms_norm_eps": "1e-5"}),
    ("rms_norm_eps", {"rms_norm_eps": float("nan")}),
    ("rms_norm_eps", {"rms_norm_eps": float("inf")}),
    ("rms_norm_eps", {"rms_norm_eps": 1e300}),
    ("rope_theta", {"rope_theta": 1e300}),
    ("factor", {"rope_scaling": {"type": "linear", "factor": 1e-300}}),
    ("rope_theta", {"rope_theta": -1}),
    ("rope_theta", {"rope_theta": "10000"}),
    ("rope_theta", {"rope_parameters": {"rope_theta": 777.0}}),
    ("rope_scaling", {"rope_scaling": "linear"}),
    ("factor", {"rope_scaling": {"type": "linear"}}),
    ("factor", {"rope_scaling": {"type": "linear", "factor": 0}}),
    ("type", {"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}}),
    ("type mrope", {"rope_scaling": {"type": "mrope", "factor": 2.0}}),
    ("attention_factor", {"rope_scaling": {**YARN, "attention_factor": 3.0}}),
    ("truncate", {"rope_scaling": {**YARN, "truncate": False}}),
    ("short_factor", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}}),
    (
        "rope_scaling",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    ),
    (
        "rope_parameters",
        {
            "rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 2e4}},
            "rope_theta": None,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 64,
        },
    ),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    ("hidden_act", {"hidden_act": "gelu"}),
    ("hidden_act", {"hidden_act": ["silu"]}),
    ("attention_bias", {"attention_bias": "false"}),
    ("attention_bias", {"model_type": "qwen3", "attention_bias": True}),
    ("tie_word_embeddings", {"tie_word_embeddings": 1}),
    ("layer_types", {"layer_types": ["full_attention"]}),
    ("layer_types", {"layer_types": ["full_attention", "chunked_attention"]}),
    ("sliding_window", {"model_type": "mistral", "sliding_window": "64"}),
    ("attn_logit_softcapping", {"attn_logit_softcapping": 30.0}),
    ("model_type", {"model_type": ["llama"]}),
    ("bits", {"quantization": {"group_size": 64}}),
    ("7 bits", {"quantization": {"bits": 7, "group_size": 64}}),
    ("group_size", {"quantization": {"bits": 4, "group_size": "64"}}),
    ("quantization", {"quantization": 4}),
    ("mode", {"quantization": {"bits": 4, "group_size": 64, "mode": "int4"}}),
    ("n_layer", {"model_type": "gpt2", "n_layer": 10**6}),
    ("num_experts", {"model_type": "qwen3_moe", "num_experts": 10**7}),
    *(
        (m, {"quantization_config": {"quant_method": m, "bits": 4}})
        for m in ("gptq", "awq", "bitsandbytes", "fp8", "hqq")
    ),
    *(
        (m, {"quantization_config": {"quant_method": m}})
        for m in ("compressed-tensors", "modelopt", "bitnet", "torchao")
    ),
]


@pytest.mark.parametrize(("key", "change"), REFUSED)
def test_what_neither_backend_supports_is_refused_by_name(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=key) as refused:
        settings_of(**change)
    assert len(str(refused.value)) < 300
    assert refused.value.hint


def test_unsupported_quantisations_say_what_to_use_instead() -> None:
    with pytest.raises(ModelError, match="quantised by gptq") as refused:
        settings_of(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    assert "mlx-community" in refused.value.hint


def test_a_window_of_every_layer_bounds_the_context() -> None:
    assert settings_of(model_type="mistral", sliding_window=64).context == 64
    assert settings_of(model_type="mistral", sliding_window=None).context == 4096
    assert settings_of(model_type="qwen2", sliding_window=64, use_sliding_window=False).context == 4096
    assert settings_of(model_type="qwen2", sliding_window=64, use_sliding_window=True).context == 64
    assert settings_of(model_type="llama", sliding_window=64).context == 4096


def test_the_planner_reads_the_same_configuration() -> None:
    shape = shape_from_config(
        settings_of(quantization={"bits": 4, "group_size": 32, "model.embed_tokens": {"bits": 8, "group_size": 32}})
    )
    assert (shape.bits, shape.group_size, shape.embedding_bits) == (4, 32, 8)
    assert (shape.heads, shape.kv_heads, shape.head_size, shape.ffn) == (4, 2, 16, 128)
