"""config.json, checked and read once for both backends, the planner and the fingerprint.

Files come from anywhere, so every key that edgepp uses is checked for its type and range. For the families in ``PLAIN``
typed fields describe the whole computation; a key that they cannot describe is refused by name, so that no backend
silently ignores it. Other families run only on mlx-lm, which reads a normalised copy of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgepp.errors import ModelError
from edgepp.model.bounded_files import shown
from edgepp.model.config.mlx_only import has_head, normalised
from edgepp.model.config.quantisation import Quantisations, read_quantisations
from edgepp.model.config.rope import RopeConfig, read_rope
from edgepp.model.config.section import Section

PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Families with the decoder layer of Llama: grouped-query attention with rotary positions, and a gated MLP."""

MAX_LAYERS = 1024
"""Limit of the number of decoder layers; the deepest published models have about 130."""

MAX_CONTEXT = 2**31 - 1
DEFAULT_CONTEXT = 4096

_QKV = frozenset({"q_proj", "k_proj", "v_proj"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
_MAX_FAMILY_CHARACTERS = 64
_BASES = {"qwen2": 1_000_000.0}
_ATTENTION = ("full_attention", "sliding_attention")
_SILU = ("silu", "swish")
_COUNTED = re.compile(r"(?:^|_)(?:layers?|experts|blocks)$")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "attention_multiplier": (None,),
    "clip_qkv": (None, 0),
    "parallel_attn": (None, False),
    "use_parallel_residual": (None, False),
    "use_qk_norm": (None, False),
    "alibi": (None, False),
    "no_rope_layers": (None, [], 0),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "quantize_activations": (None, False),
}
"""Keys that could change the computation of a plain family, each with its neutral values."""


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a model. A size is 0 where the family has another key for it."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    context: int
    """Maximum number of positions of a sequence; at most ``window`` where every layer has a sliding window."""
    tied: bool
    """Whether the output head is the embedding."""
    quantisations: Quantisations
    dtype: str
    """Dtype of the unquantised tensors according to the file; empty where the file has none."""
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    ffn: int = 0
    rope: RopeConfig = field(default_factory=RopeConfig)
    epsilon: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    interleaved: bool = False
    """Whether rotation pairs neighbouring numbers instead of the two halves of a head."""
    window: int | None = None
    """Positions to which layers with a sliding window attend."""
    layer_types: tuple[str, ...] = ()
    """Kind of attention of each layer; empty where all layers have the same kind."""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The computation as a config.json that mlx-lm reads; equal for two spellings of one model."""

    @property
    def plain(self) -> bool:
        """Whether the typed fields describe the whole computation."""
        return self.family in PLAIN and self.rope.base is not None

    @property
    def biased(self) -> frozenset[str]:
        """Linears with a bias in a layer of a plain family."""
        if self.family == "qwen2":
            return _QKV
        attention = _QKV | {"o_proj"} if self.attention_bias else frozenset()
        return attention | (_MLP if self.mlp_bias else frozenset())

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], tensors: Iterable[str] = ()) -> ModelConfig:
        """Read the configuration ``values`` of the model ``name``; ``tensors`` are the names of its tensors.

        Raises:
            ModelError: a value is of the wrong type or out of range, or asks for an unsupported computation.
        """
        return _read(name, values, frozenset(tensors))


def _read(name: str, values: Mapping[str, Any], tensors: frozenset[str]) -> ModelConfig:
    root = Section(f"config.json of {name}", values)
    inner = values.get("text_config")
    nested = isinstance(inner, dict) and "num_hidden_layers" in inner
    text = root.section("text_config") if nested else root
    family = root.text("model_type", "unknown")
    if len(family) > _MAX_FAMILY_CHARACTERS or not family.isprintable():
        root.refuse("model_type")
    _refuse_code(name, root)
    _check_counts(root)
    if text is not root:
        _check_counts(text)
    context = text.size("max_position_embeddings", DEFAULT_CONTEXT, MAX_CONTEXT)
    common: dict[str, Any] = {
        "name": name,
        "family": family,
        "num_layers": text.size("num_hidden_layers", maximum=MAX_LAYERS),
        "hidden_size": text.size("hidden_size"),
        "vocab_size": text.size("vocab_size"),
        "context": context,
        "tied": _tied(root, text, tensors),
        "quantisations": read_quantisations(root, text),
        "dtype": _dtype(text) or _dtype(root),
    }
    if family in PLAIN and not nested:
        return _plain(root, common)
    common |= _optional_sizes(text, common["hidden_size"])
    return ModelConfig(**common, values=normalised(root, text, common["quantisations"], tensors))


def _refuse_code(name: str, root: Section) -> None:
    for key in ("auto_map", "model_file"):
        if root.get(key) is not None:
            raise ModelError(
                f"{name} wants to run code of its own ({key} in config.json), which edgepp never does",
                "use a model of a family that mlx-lm supports",
            )


def _check_counts(section: Section) -> None:
    """Limit numbers such as those of layers and experts, by which memory is allocated; check types of common keys."""
    for key, value in section.values.items():
        if _COUNTED.search(key) and isinstance(value, int) and not -1 <= value <= 4 * MAX_LAYERS:
            section.refuse(key)
    for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"):
        section.number(key, 1.0)
    if not isinstance(section.get("rope_theta"), list | dict):
        section.number("rope_theta", 1.0)
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "rope_traditional"):
        section.flag(key)


def _dtype(section: Section) -> str:
    return section.text("torch_dtype", section.text("dtype", "")).removeprefix("torch.")


def _tied(root: Section, text: Section, tensors: frozenset[str]) -> bool:
    """Whether the head is the embedding: as the file says, or else if the tensors include no head."""
    for section in (root, text):
        if section.get("tie_word_embeddings") is not None:
            return section.flag("tie_word_embeddings")
    return not has_head(tensors)


def _optional_sizes(text: Section, hidden: int) -> dict[str, int]:
    """Sizes that the planner uses; a size that is absent, or a list with one entry per layer, becomes 0."""

    def size(key: str) -> int:
        return 0 if isinstance(text.get(key), list) or text.get(key) is None else text.size(key)

    heads = size("num_attention_heads")
    return {
        "heads": heads,
        "kv_heads": size("num_key_value_heads") or heads,
        "head_dim": size("head_dim") or (hidden // heads if heads else 0),
        "ffn": size("intermediate_size"),
    }


def _plain(config: Section, common: dict[str, Any]) -> ModelConfig:
    family, hidden = common["family"], common["hidden_size"]
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    head_dim = config.size("head_dim", hidden // heads or None, 1 << 16)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            f"{config.where} gives {heads} heads of size {head_dim} over {kv_heads} key-value heads",
            "take the file from where the model was published",
        )
    _refuse_unsupported(config, family)
    kinds, window = _attention(config, family, common["num_layers"], common["context"])
    rope = read_rope(config, head_dim, common["context"], kinds or ("full_attention",))
    if rope.rotated_part != 1.0:
        raise ModelError(
            f"{config.where} rotates only a part of each head (partial_rotary_factor is {rope.rotated_part}), which"
            f" models of family {family} cannot",
            "take the file from where the model was published",
        )
    if rope.base is None:
        rope = replace(rope, base=_BASES.get(family, 10_000.0))
    positions = common["context"]
    if window is not None and not kinds:
        common["context"] = min(positions, window)
    model = ModelConfig(
        **common,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=config.size("intermediate_size"),
        rope=rope,
        epsilon=config.number("rms_norm_eps", 1e-6),
        attention_bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
        interleaved=config.flag("rope_traditional"),
        window=window,
        layer_types=kinds,
    )
    return replace(model, values=_described(model, positions))


def _refuse_unsupported(config: Section, family: str) -> None:
    """Refuse keys that ask for a computation which neither backend supports for these families."""
    neutral = {**_NEUTRAL, "hidden_act": (None, *_SILU)}
    if family == "qwen3":
        neutral |= {"attention_bias": (None, False), "mlp_bias": (None, False), "rope_traditional": (None, False)}
    if family == "qwen2":
        neutral |= {"mlp_bias": (None, False)}
    for key, allowed in neutral.items():
        if config.get(key) not in allowed:
            raise ModelError(
                f"{config.where} asks for {key} {shown(repr(config.get(key)), 40)}, which edgepp does not compute for"
                f" family {family}",
                "choose another model; see `edgepp models list`",
            )


def _attention(config: Section, family: str, layers: int, context: int) -> tuple[tuple[str, ...], int | None]:
    """Kinds of attention by layer, empty unless mlx-lm mixes kinds for the family; and the sliding window or None."""
    kinds = config.get("layer_types")
    if kinds is None:
        slides = config.flag("use_sliding_window", family == "mistral") and config.get("sliding_window") is not None
        if family in ("qwen2", "qwen3"):
            slides = slides and _slides_from(config) < layers
    else:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in _ATTENTION for kind in kinds):
            config.refuse("layer_types")
        slides = _ATTENTION[1] in kinds
    window = config.size("sliding_window") if slides else None
    if window is None or window >= context:
        return (), None
    mixed = kinds is not None and _ATTENTION[0] in kinds and family in ("llama", "mistral")
    return tuple(kinds) if mixed else (), window


def _slides_from(config: Section) -> int:
    """Number of the first layer that attends through the window."""
    return config.size("max_window_layers") if config.get("max_window_layers") else 0


def _described(model: ModelConfig, positions: int) -> dict[str, Any]:
    """config.json of a plain family with every key that matters and no other, as mlx-lm reads them."""
    values: dict[str, Any] = {
        "model_type": model.family,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "intermediate_size": model.ffn,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.epsilon,
        "vocab_size": model.vocab_size,
        "rope_theta": model.rope.base,
        "rope_scaling": model.rope.to_scaling(),
        "rope_traditional": model.interleaved,
        "max_position_embeddings": positions,
        "tie_word_embeddings": model.tied,
        "attention_bias": model.attention_bias,
        "mlp_bias": model.mlp_bias,
    }
    if model.layer_types:
        values |= {"layer_types": list(model.layer_types), "sliding_window": model.window}
    elif model.window is not None:
        values["context"] = model.context
    if quantisation := model.quantisations.to_config():
        values["quantization"] = quantisation
    return values
