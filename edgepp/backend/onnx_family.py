"""Which architectures the ONNX graph can express, read from a model's configuration.

Everything the graph takes for granted is checked here, so that a model runs as its authors meant it or is
refused by name. Nothing here knows ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepp.errors import ModelError
from edgepp.model.checkpoint import Array, Checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""mlx-lm's names of the architectures that the graph can express."""

_QKV = frozenset({"q_proj", "k_proj", "v_proj"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding in the half-split form; ``kind`` is ``default``, ``linear`` or ``llama3``."""

    head_dim: int
    base: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def periods(self) -> Array:
        """The (head_dim / 2,) periods of the rotations, in positions over 2 pi."""
        plain = self.base ** (np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        if self.kind != "llama3":
            return plain * self.factor
        # Llama 3.1: long wavelengths are stretched by the factor, short ones kept, those between blended.
        turns = self.original_context / (2 * np.pi * plain)
        keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        return plain / ((1 - keep) / self.factor + keep)

    def tables(self, positions: int) -> tuple[Array, Array]:
        """Float32 cosines and sines of the first ``positions`` positions, each (positions, head_dim / 2)."""
        angles = np.arange(positions, dtype=np.float64)[:, None] / self.periods()
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass(frozen=True)
class Architecture:
    """What sets one model of these families apart from another."""

    family: str
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    context: int
    rope: Rope
    biased: frozenset[str]
    """The projections that add a bias."""
    head_norms: bool
    """Each query and key head is normalised before rotation (Qwen 3)."""
    tied: bool
    """The output head is the embedding."""


@dataclass(frozen=True)
class _Settings:
    """A part of config.json, read with checks: it comes from the network."""

    family: str
    values: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or not 0 < value < 2**31:
            raise self.unfit(f"whose config.json has no usable {key}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.unfit(f"whose config.json has no usable {key}")
        return float(value)

    def section(self, key: str) -> _Settings:
        value = self.get(key)
        return _Settings(self.family, value if isinstance(value, dict) else {})

    def unfit(self, reason: str) -> ModelError:
        return ModelError(
            f"the onnx backend cannot run this {self.family} model, {reason}",
            "use --backend mlx, which runs what mlx-lm runs",
        )


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """The model's architecture.

    Raises:
        ModelError: the graph cannot express it; says why.
    """
    config = _Settings(checkpoint.family, checkpoint.text_config)
    if config.family not in FAMILIES:
        raise config.unfit(f"for it knows only {', '.join(FAMILIES)}")
    _check_layers(config, checkpoint.context)
    _check_quantisation(_Settings(checkpoint.family, checkpoint.config))
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    head_dim = config.size("head_dim", checkpoint.hidden_size // heads)
    if head_dim % 8 or heads % kv_heads:
        raise config.unfit(f"with {heads} heads of size {head_dim} over {kv_heads} key-value heads")
    return Architecture(
        family=config.family,
        hidden_size=checkpoint.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        epsilon=config.number("rms_norm_eps", 1e-6),
        context=checkpoint.context,
        rope=_rope(config, head_dim),
        biased=_biased(config),
        head_norms=config.family == "qwen3",
        tied=bool(checkpoint.config.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
    )


def _check_layers(config: _Settings, context: int) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise config.unfit(f"whose activation is {activation}")
    if others := {str(kind) for kind in config.get("layer_types", ())} - {"full_attention"}:
        raise config.unfit(f"which has layers of type {', '.join(sorted(others))}")
    slides = config.get("use_sliding_window", config.family == "mistral")
    if slides and config.size("sliding_window", context) < context:
        raise config.unfit(f"whose attention sees a window of {config.get('sliding_window')} positions")


def _check_quantisation(config: _Settings) -> None:
    whole = config.get("quantization") or config.get("quantization_config") or {}
    for own in (whole, *(value for value in whole.values() if isinstance(value, dict))):
        mode = own.get("mode", own.get("quant_method", "affine"))
        bits, group_size = own.get("bits", 4), own.get("group_size", 32)
        if mode != "affine" or bits not in _BITS or group_size not in _GROUP_SIZES:
            raise config.unfit(f"whose weights are quantised as {mode}, {bits} bits, groups of {group_size}")


def _biased(config: _Settings) -> frozenset[str]:
    if config.family == "qwen2":
        return _QKV
    if config.family == "qwen3":
        return frozenset()
    attention = _QKV | {"o_proj"} if config.get("attention_bias") else frozenset()
    return attention | (_MLP if config.get("mlp_bias") else frozenset())


def _rope(config: _Settings, head_dim: int) -> Rope:
    nested = config.section("rope_parameters")  # where newer configurations keep base and scaling
    scaling = config.section("rope_scaling")
    scaling = scaling if scaling.values else nested
    kind = scaling.get("type") or scaling.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise config.unfit(f"whose rotary embedding is of type {kind}")
    if config.get("rope_traditional"):
        raise config.unfit("whose rotary embedding turns neighbouring pairs")
    if config.get("partial_rotary_factor", nested.get("partial_rotary_factor", 1.0)) != 1.0:
        raise config.unfit("which rotates only a part of each head")
    based = nested if config.get("rope_theta") is None else config
    return Rope(
        head_dim=head_dim,
        base=based.number("rope_theta", 1_000_000.0 if config.family == "qwen2" else 10_000.0),
        kind=kind,
        factor=1.0 if kind == "default" else scaling.number("factor"),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        original_context=scaling.size("original_max_position_embeddings", 8192),
    )
