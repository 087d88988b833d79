"""Configurations of families that only mlx-lm runs: the keys that matter, with rotations in old and new spelling.

mlx-lm's families read either the current keys or those of earlier versions of transformers, and silently use a default
where they find neither. So a normalised configuration has both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from edgepp.errors import ModelError
from edgepp.model.config.quantisation import Quantisations
from edgepp.model.config.section import Section

_IRRELEVANT = frozenset(
    {
        "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
        "attention_dropout", "hidden_dropout", "resid_dropout", "embd_dropout", "pretraining_tp", "bos_token_id",
        "eos_token_id", "pad_token_id", "unk_token_id", "quantization", "quantization_config", "torchscript",
        "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing", "auto_map",
    }
)  # fmt: skip
"""Keys that do not change the computation of a model, or that normalisation writes itself."""

_OLD_KEYS = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
"""Keys of the GPT-NeoX family, and the current keys with the same meaning."""

_IN_PARAMETERS = ("rope_theta", "partial_rotary_factor")


def has_head(tensors: Iterable[str]) -> bool:
    """Whether the tensors include an output head, separate from the embedding."""
    return any(name == "lm_head.weight" or name.endswith(".lm_head.weight") for name in tensors)


def normalised(root: Section, text: Section, quantisations: Quantisations, tensors: frozenset[str]) -> dict[str, Any]:
    """The configuration as mlx-lm is to read it; ``text`` is the section of the language model, or ``root`` itself.

    Raises:
        ModelError: two spellings contradict each other.
    """
    values = {key: copy.deepcopy(value) for key, value in root.values.items() if key not in _IRRELEVANT}
    inner = values if text is root else values["text_config"]
    if text is not root:
        for key in _IRRELEVANT & inner.keys():
            del inner[key]
    _spell_rope(text, inner)
    if has_head(tensors) and root.get("tie_word_embeddings") is None and text.get("tie_word_embeddings") is None:
        values["tie_word_embeddings"] = inner["tie_word_embeddings"] = False
    if quantisation := quantisations.to_config():
        values["quantization"] = quantisation
    return values


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """A normalised configuration without redundant keys: equal for two spellings of the same computation."""
    kept = {key: value for key, value in values.items() if value is not None}
    if not _nested(kept.get("rope_parameters") or {}):
        kept.pop("rope_parameters", None)  # the older keys have the same values
    for old_key, key in _OLD_KEYS.items():
        if old_key in kept and kept[old_key] == kept.get(key):
            del kept[old_key]
    if isinstance(kept.get("rope_scaling"), dict) and _kind(kept["rope_scaling"]) == "default":
        del kept["rope_scaling"]
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = canonical(kept["text_config"])
    return kept


def _nested(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of ``rope_parameters`` that are rotations by layer type."""
    return {kind: dict(value) for kind, value in parameters.items() if isinstance(value, dict)}


def _kind(scaling: Mapping[str, Any]) -> Any:
    return scaling.get("type") or scaling.get("rope_type") or "default"


def _spell_rope(text: Section, values: dict[str, Any]) -> None:
    """Add the keys of earlier transformers to those in ``rope_parameters``, and both names of the kind of scaling."""
    _spell_parameters(text, values)
    scaling = values.get("rope_scaling")
    if isinstance(scaling, dict) and ("type" in scaling or "rope_type" in scaling):
        scaling.setdefault("type", _kind(scaling))
        scaling.setdefault("rope_type", _kind(scaling))


def _spell_parameters(text: Section, values: dict[str, Any]) -> None:
    parameters = text.section("rope_parameters")
    if not parameters.values:
        return
    flat = {**parameters.values}
    nested = _nested(flat)
    keys: tuple[str, ...] = _IN_PARAMETERS
    if nested:
        local = nested.get("sliding_attention")
        if local and local.get("rope_theta") is not None:
            _set_agreeing(text, values, "rope_local_base_freq", local["rope_theta"])
        flat = nested.get("full_attention") or next(iter(nested.values()))
        keys = _IN_PARAMETERS[:1]  # the rotated part may differ by layer type, for which no older key exists
    for key in keys:
        if flat.get(key) is not None:
            _set_agreeing(text, values, key, flat[key])
    for old_key, key in _OLD_KEYS.items():
        if values.get(key) is not None:
            values.setdefault(old_key, values[key])
    kind = _kind(flat)
    scaling = {key: value for key, value in flat.items() if key not in _IN_PARAMETERS}
    if kind != "default" and not values.get("rope_scaling"):
        values["rope_scaling"] = {**scaling, "type": kind, "rope_type": kind}


def _set_agreeing(text: Section, values: dict[str, Any], key: str, value: Any) -> None:
    if values.get(key) not in (None, value):
        raise ModelError(
            f"{text.where} contradicts itself: {key} is {values[key]}, and {value} in rope_parameters",
            "take the file from where the model was published",
        )
    values[key] = value
