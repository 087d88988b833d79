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
_BITS = frozenset({2, 3, 4, 5, 6, 8})


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


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """The model's architecture.

    Raises:
        ModelError: the graph cannot express it; says why.
    """
    family, config = checkpoint.family, checkpoint.text_config
    if family not in FAMILIES:
        raise _unfit(family, f"of which it knows only {', '.join(FAMILIES)}")
    _check_layers(family, config, checkpoint.context)
    _check_quantisation(family, checkpoint.config)
    heads = _size(family, config, "num_attention_heads")
    head_dim = int(config.get("head_dim") or checkpoint.hidden_size // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if head_dim % 8 or heads % kv_heads:
        raise _unfit(family, f"with {heads} heads of size {head_dim} over {kv_heads} key-value heads")
    return Architecture(
        family=family,
        hidden_size=checkpoint.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        context=checkpoint.context,
        rope=_rope(family, config, head_dim),
        biased=_biased(family, config),
        head_norms=family == "qwen3",
        tied=bool(checkpoint.config.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
    )


def _unfit(family: str, reason: str) -> ModelError:
    return ModelError(
        f"the onnx backend cannot run this {family} model, {reason}",
        "use --backend mlx, which runs what mlx-lm runs",
    )


def _size(family: str, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise _unfit(family, f"whose config.json has no usable {key}")
    return value


def _check_layers(family: str, config: Mapping[str, Any], context: int) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise _unfit(family, f"whose activation is {activation}")
    if others := set(config.get("layer_types") or ()) - {"full_attention"}:
        raise _unfit(family, f"which has layers of type {', '.join(sorted(map(str, others)))}")
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", family == "mistral")
    if slides and window is not None and window < context:
        raise _unfit(family, f"whose attention sees a sliding window of {window} positions")


def _check_quantisation(family: str, config: Mapping[str, Any]) -> None:
    settings = config.get("quantization") or config.get("quantization_config") or {}
    for own in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        mode = own.get("mode", own.get("quant_method", "affine"))
        bits, group_size = own.get("bits", 4), own.get("group_size", 32)
        if mode != "affine" or bits not in _BITS or group_size not in (16, 32, 64, 128, 256):
            raise _unfit(family, f"whose weights are quantised as {mode}, {bits} bits, groups of {group_size}")


def _biased(family: str, config: Mapping[str, Any]) -> frozenset[str]:
    if family == "qwen2":
        return _QKV
    if family == "qwen3":
        return frozenset()
    attention = _QKV | {"o_proj"} if config.get("attention_bias") else frozenset()
    return attention | (_MLP if config.get("mlp_bias") else frozenset())


def _rope(family: str, config: Mapping[str, Any], head_dim: int) -> Rope:
    nested = config.get("rope_parameters") or {}  # where newer configurations keep base and scaling
    scaling = config.get("rope_scaling") or nested
    kind = scaling.get("type") or scaling.get("rope_type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise _unfit(family, f"whose rotary embedding is of type {kind}")
    if config.get("rope_traditional"):
        raise _unfit(family, "whose rotary embedding turns neighbouring pairs")
    if config.get("partial_rotary_factor", nested.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _unfit(family, "which rotates only a part of each head")
    default_base = 1_000_000.0 if family == "qwen2" else 10_000.0
    return Rope(
        head_dim=head_dim,
        base=float(config.get("rope_theta") or nested.get("rope_theta") or default_base),
        kind=kind,
        factor=1.0 if kind == "default" else float(scaling["factor"]),
        low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
        high_freq_factor=float(scaling.get("high_freq_factor", 4.0)),
        original_context=int(scaling.get("original_max_position_embeddings", 8192)),
    )
