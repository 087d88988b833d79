"""Architectures that the ONNX graph can express, read from a model's configuration.

Everything that the graph assumes is checked first, so a model is computed as its authors meant it, or is refused with
the reason. Does not import ONNX.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.config.model_config import PLAIN, ModelConfig
from edgepp.model.shape import refuse_unused_tensors, shape_from_config
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.model.weights.safetensors_header import wrong_dtype

_FLOATS = ("F32", "F16", "BF16")
_PACKED = ("U32",)
"""Dtype of quantised weights, of which each number holds several."""
FAMILIES = PLAIN
"""Names, as in mlx-lm, of the architectures that the graph can express."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding over the two halves of a head; ``kind`` is ``default``, ``linear`` or ``llama3``."""

    head_dim: int
    base: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def periods(self) -> Array:
        """Positions per radian of each rotation, float64 (head_dim / 2,)."""
        plain = self.base ** (np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        if self.kind != "llama3":
            return plain * self.factor
        # Llama 3.1: long wavelengths are stretched by the factor, short wavelengths stay, and between them the two
        # blend.
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
    """The sizes and options in which models of ``FAMILIES`` differ."""

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
    """Whether each query and key head is normalised before rotation (Qwen 3)."""
    tied: bool
    """Whether the output head is the embedding."""


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture of the model, from its configuration.

    Raises:
        ModelError: the graph cannot express the model; the sentence gives the reason.
    """
    model = checkpoint.settings
    if model.family not in FAMILIES:
        raise _unsupported(model, f"as it supports only the families {', '.join(FAMILIES)}")
    if model.layer_types:
        raise _unsupported(
            model, f"which has layers of type sliding_attention, with a window of {model.window} positions"
        )
    if model.window is not None:
        raise _unsupported(model, f"whose attention sees a window of {model.window} positions")
    if model.interleaved:
        raise _unsupported(model, "whose rotary embedding turns neighbouring pairs (rope_traditional)")
    if model.head_dim % 8:
        raise _unsupported(model, f"with heads of size {model.head_dim}")
    for quantisation in model.quantisations.modes():
        if quantisation.mode != "affine":
            raise _unsupported(model, f"whose weights are quantised as {quantisation.mode}")
    return Architecture(
        hidden_size=model.hidden_size,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        epsilon=model.epsilon,
        context=model.context,
        rope=_rope(model),
        biased=model.biased,
        head_norms=model.family == "qwen3",
        tied=model.tied,
    )


def _unsupported(model: ModelConfig, reason: str) -> ModelError:
    return ModelError(
        f"the onnx backend cannot run this {model.family} model, {reason}",
        "use --backend mlx, which runs what mlx-lm runs",
    )


def _rope(model: ModelConfig) -> Rope:
    rope = model.rope
    if rope.kind not in ("default", "linear", "llama3") or rope.base is None:
        raise _unsupported(model, f"whose rotary embedding is of type {rope.kind}")
    return Rope(
        head_dim=model.head_dim,
        base=rope.base,
        kind=rope.kind,
        factor=rope.scaling.get("factor", 1.0),
        low_freq_factor=rope.scaling.get("low_freq_factor", 1.0),
        high_freq_factor=rope.scaling.get("high_freq_factor", 4.0),
        original_context=rope.scaling.get("original_max_position_embeddings", 8192),
    )


def check_tensors(checkpoint: Checkpoint, layers: LayerRange | None) -> None:
    """Check the tensors of ``layers`` (None: of embedding, final norm and head) against the shapes of the architecture.

    Raises:
        ModelError: a tensor is absent, or of another shape.
    """
    model = checkpoint.settings
    if layers is None:
        checkpoint.require_embedding_and_head()
        _check_matrix(checkpoint, "model.embed_tokens", model.vocab_size, model.hidden_size)
        check_head(checkpoint)
        return
    refuse_unused_tensors(checkpoint, layers)
    shape = shape_from_config(model)
    for n in range(layers.start, layers.stop):
        for name, (rows, columns) in shape.layer_matrices().items():
            _check_matrix(checkpoint, f"model.layers.{n}.{name}", rows, columns)
            if name.rpartition(".")[2] in model.biased:
                _check(checkpoint, f"model.layers.{n}.{name}.bias", (rows,))
        for name, length in shape.layer_vectors().items():
            _check(checkpoint, f"model.layers.{n}.{name}", (length,))


def check_head(checkpoint: Checkpoint) -> None:
    """Check the tensors of final norm and output head against the shapes of the architecture.

    Raises:
        ModelError: a tensor is absent, or of another shape.
    """
    checkpoint.require_head()
    model = checkpoint.settings
    _check_matrix(checkpoint, checkpoint.head_module, model.vocab_size, model.hidden_size)
    _check(checkpoint, "model.norm.weight", (model.hidden_size,))


def _check_matrix(checkpoint: Checkpoint, module: str, rows: int, columns: int) -> None:
    quantisation = checkpoint.quantisation(module)
    if quantisation is None:
        _check(checkpoint, f"{module}.weight", (rows, columns))
        return
    _check(checkpoint, f"{module}.weight", (rows, columns * quantisation.bits // 32), _PACKED)
    for name in (f"{module}.scales", f"{module}.biases"):
        if name in checkpoint.tensors and checkpoint.tensors[name].dtype not in _FLOATS:
            raise wrong_dtype(name, checkpoint.path, checkpoint.tensors[name].dtype)


def _check(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtypes: Collection[str] = _FLOATS) -> None:
    place = checkpoint.tensors.get(name)
    if place is None:
        raise ModelError(f"{checkpoint.path} lacks the tensor {name}", "fetch it with `edgepp models pull`")
    if place.shape != shape:
        raise ModelError(f"{name} of {checkpoint.path.name} has shape {place.shape}; the model needs {shape}")
    if place.dtype not in dtypes:
        raise wrong_dtype(name, checkpoint.path, place.dtype)
