"""One model, however its configuration is spelled: both backends, alone and mixed, give the tokens of mlx-lm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.backend.base import BackendOptions
from edgepp.backend.mlx.backend import MlxBackend
from edgepp.backend.onnx.backend import OnnxBackend, fits
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import Shape
from edgepp.model.config.model_config import ModelConfig
from edgepp.model.random_checkpoint import LLAMA3_ROPE, TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint
from tests import reference
from tests.backend.test_onnx_architecture import CONFIG
from tests.builders.properties import examples
from tests.engines import greedy_tokens, local_engine

PROMPT = [7, 91, 300, 12, 12, 45, 200, 3, 88, 17, 260, 33, 5, 140, 9, 77]
GENERATED = 6
SPLIT = (LayerRange(0, 1), LayerRange(1, 2), LayerRange(2, 3))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

MODELS = st.fixed_dictionaries(
    {
        "family": st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "tied": st.booleans(),
        "bits": st.sampled_from([None, 4, 8]),
        "theta": st.sampled_from([777.0, 10_000.0, 500_000.0]),
        "scaling": st.sampled_from(
            [
                None,
                {"rope_type": "linear", "factor": 4.0},
                dict(LLAMA3_ROPE),
                {"rope_type": "dynamic", "factor": 2.0},
                YARN,
                {**YARN, "beta_fast": 16.0, "mscale": 0.7},
            ]
        ),
        "biased": st.booleans(),
        "epsilon": st.sampled_from([1e-6, 1e-3]),
    }
)


def make(folder: Path, drawn: dict[str, Any]) -> Path:
    """A checkpoint whose configuration is spelled as mlx-lm reads it in every family."""
    bits = drawn["bits"]
    shape = replace(
        TINY, family=drawn["family"], layers=3, kv_heads=drawn["kv_heads"], tied=drawn["tied"], bits=bits,
        group_size=bits and 32,
    )  # fmt: skip
    make_checkpoint(folder, shape, rope_theta=drawn["theta"], rope_scaling=drawn["scaling"])
    config = read(folder) | {"rms_norm_eps": drawn["epsilon"]}
    if drawn["biased"] and drawn["family"] in ("llama", "mistral"):
        config |= {"attention_bias": True, "mlp_bias": True}
        add_biases(folder, shape)
    write(folder, config)
    return folder


def add_biases(folder: Path, shape: Shape) -> None:
    file = str(folder / "model.safetensors")
    tensors: Any = mx.load(file)
    for layer in range(shape.layers):
        for name, (rows, _) in shape.layer_matrices().items():
            key = mx.random.key(layer * 100 + rows)
            tensors[f"model.layers.{layer}.{name}.bias"] = 0.1 * mx.random.normal((rows,), key=key)
    mx.eval(tensors)
    mx.save_safetensors(file, tensors)


def read(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def spellings(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Configurations with the same meaning."""
    rest = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    scaling = config.get("rope_scaling") or {}
    parameters = {"rope_type": "default", **scaling, "rope_theta": config["rope_theta"]}
    typed = {("type" if key == "rope_type" else key): value for key, value in scaling.items()}
    forms = {
        "transformers 5": rest | {"rope_parameters": parameters, "dtype": rest["torch_dtype"], "torch_dtype": None},
        "by layer type": rest | {"rope_parameters": {"full_attention": parameters, "sliding_attention": None}},
        "both": config | {"rope_parameters": parameters},
        "an older key": config | {"rope_scaling": typed or None},
        "noise": config
        | {"transformers_version": "9.9", "use_cache": True, "pad_token_id": None, "sliding_window": None},
        "defaults left out": {k: v for k, v in config.items() if (k, v) != ("attention_bias", False)},
    }
    if config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]:
        forms["no head size"] = {key: value for key, value in config.items() if key != "head_dim"}
    forms["tied by what is there"] = {k: v for k, v in config.items() if k != "tie_word_embeddings"}
    return forms


def spelled(folder: Path, original: Path, config: dict[str, Any]) -> Path:
    """A folder with links to the files of another folder, and its own configuration."""
    folder.mkdir()
    for path in original.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    write(folder, config)
    return folder


@given(drawn=MODELS, form=st.integers(0, 7))
@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_spelling_gives_the_tokens_of_mlx_lm(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any], form: int
) -> None:
    work = tmp_path_factory.mktemp("spelled")
    original = make(work / "original", drawn)
    expected = reference.greedy(original, PROMPT, GENERATED)
    forms = spellings(read(original))
    name = list(forms)[form % len(forms)]
    folder = spelled(work / "other", original, forms[name])
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.fingerprint == Checkpoint.open(original).fingerprint, name
    mixes = [["mlx"]]
    if fits(checkpoint):
        mixes += [["onnx"], ["mlx", "onnx"], ["onnx", "mlx"]]
    for backends in mixes:
        with local_engine(folder, SPLIT, backends) as engine:
            assert greedy_tokens(engine, PROMPT, GENERATED) == expected, f"{name}, {backends}"


def settings_of(**changes: Any) -> ModelConfig:
    return ModelConfig.read("m", CONFIG | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 20000.0},
        {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}, "rope_theta": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rms_norm_eps": 1e-6},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"head_dim": 32},
        {"rope_traditional": True},
        {"max_position_embeddings": 2048},
        {"quantization": {"bits": 4, "group_size": 64}},
        {"quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 8}}},
        {"model_type": "qwen3"},
        {"model_type": "mistral", "sliding_window": 64},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64},
        {"torch_dtype": "bfloat16"},
    ],
)
def test_another_computation_has_another_fingerprint(change: dict[str, Any]) -> None:
    def fingerprint(config: dict[str, Any]) -> str:
        return Checkpoint(Path("m"), config, {}).fingerprint

    assert fingerprint(CONFIG | change) != fingerprint(CONFIG)


def test_a_head_in_the_file_is_used_where_the_configuration_is_silent(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", replace(TINY, tied=False))
    config = read(folder)
    expected = reference.greedy(folder, PROMPT, GENERATED)
    silent = spelled(tmp_path / "silent", folder, {k: v for k, v in config.items() if k != "tie_word_embeddings"})
    tied = spelled(tmp_path / "tied", folder, config | {"tie_word_embeddings": True})
    for path, tokens in ((silent, expected), (tied, reference.greedy(tied, PROMPT, GENERATED))):
        for backends in (["mlx"], ["onnx"]):
            with local_engine(path, (LayerRange(0, 4),), backends) as engine:
                assert greedy_tokens(engine, PROMPT, GENERATED) == tokens
    assert Checkpoint.open(silent).fingerprint == Checkpoint.open(folder).fingerprint
    assert Checkpoint.open(tied).fingerprint != Checkpoint.open(folder).fingerprint


def test_a_head_that_is_configured_but_missing_is_refused_by_both(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", TINY)
    write(folder, read(folder) | {"tie_word_embeddings": False})
    for backend in (MlxBackend(), OnnxBackend()):
        with pytest.raises(ModelError, match=r"no lm_head\.weight"):
            backend.load_embedding_and_head(Checkpoint.open(folder), BackendOptions(exact=True))


def test_biases_that_the_configuration_does_not_mention_are_refused_by_both(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m", TINY)
    add_biases(folder, TINY)
    for backend in (MlxBackend(), OnnxBackend()):
        with pytest.raises(ModelError, match=r"has a tensor model\.layers\.0\..*\.bias"):
            backend.load_stage(Checkpoint.open(folder), LayerRange(0, 1), BackendOptions(exact=True))


@pytest.mark.parametrize(
    ("family", "change", "key"),
    [
        ("qwen2", {"head_dim": 32}, "head_dim"),
        ("gpt2", {"rope_scaling": {"type": "linear", "factor": 2.0}, "num_key_value_heads": 4}, "rope_scaling"),
    ],
)
def test_what_mlx_lm_would_silently_ignore_is_refused(
    tmp_path: Path, family: str, change: dict[str, Any], key: str
) -> None:
    folder = make_checkpoint(tmp_path / "m", TINY)
    extra = {"n_ctx": 64, "n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 64, "layer_norm_epsilon": 1e-5}
    write(folder, read(folder) | extra | {"model_type": family} | change)
    with pytest.raises(ModelError, match=f"does not read {key}"):
        MlxBackend().load_stage(Checkpoint.open(folder), LayerRange(0, 1), BackendOptions(exact=True))


def test_a_newer_spelling_reaches_families_that_read_the_older_keys() -> None:
    nested = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    values = settings_of(model_type="gemma3_text", rope_theta=None, rope_parameters=nested).values
    assert (values["rope_theta"], values["rope_local_base_freq"]) == (1e6, 1e4)
    assert (values["rope_scaling"]["type"], values["rope_scaling"]["factor"]) == ("linear", 8.0)
    with pytest.raises(ModelError, match="rope_theta"):
        settings_of(model_type="gemma2", rope_parameters={"rope_theta": 5.0, "rope_type": "default"})
