"""Configurations of families that mlx-lm alone runs: what counts of them, and both old and new spellings of rotations.

mlx-lm's families read either the keys of today or those of earlier transformers, and use a default in silence where
they find neither. So a normalised file holds both, in agreement.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from edgepp.errors import ModelError
from edgepp.model.config.quantisation import Quantisations
from edgepp.model.config.section import Section

_IDLE = frozenset(
    {
        "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
        "attention_dropout", "hidden_dropout", "resid_dropout", "embd_dropout", "pretraining_tp", "bos_token_id",
        "eos_token_id", "pad_token_id", "unk_token_id", "quantization", "quantization_config", "torchscript",
        "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing", "auto_map",
    }
)  # fmt: skip
"""Keys that change nothing of what a model computes, or that are written anew."""

_OLDER = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
"""Keys of the GPT-NeoX family, and those of today that say the same."""

_IN_PARAMETERS = ("rope_theta", "partial_rotary_factor")


def has_head(tensors: Iterable[str]) -> bool:
    """Whether an output head of its own is among the tensors."""
    return any(name == "lm_head.weight" or name.endswith(".lm_head.weight") for name in tensors)


def normalised(whole: Section, text: Section, quantisations: Quantisations, tensors: frozenset[str]) -> dict[str, Any]:
    """The configuration as mlx-lm is to read it; ``text`` is its language model's part, or all of it.

    Raises:
        ModelError: two spellings contradict each other.
    """
    values = {key: copy.deepcopy(value) for key, value in whole.values.items() if key not in _IDLE}
    inner = values if text is whole else values["text_config"]
    if text is not whole:
        for key in _IDLE & inner.keys():
            del inner[key]
    _spell_rope(text, inner)
    if has_head(tensors) and whole.get("tie_word_embeddings") is None and text.get("tie_word_embeddings") is None:
        values["tie_word_embeddings"] = inner["tie_word_embeddings"] = False
    if quantisation := quantisations.to_config():
        values["quantization"] = quantisation
    return values


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """A normalised configuration without what its spelling adds: equal for two spellings of one computation."""
    kept = {key: value for key, value in values.items() if value is not None}
    if not _nested(kept.get("rope_parameters") or {}):
        kept.pop("rope_parameters", None)  # the older keys say the same
    for older, key in _OLDER.items():
        if older in kept and kept[older] == kept.get(key):
            del kept[older]
    if isinstance(kept.get("rope_scaling"), dict) and _kind(kept["rope_scaling"]) == "default":
        del kept["rope_scaling"]
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = canonical(kept["text_config"])
    return kept


def _nested(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rotations by layer type."""
    return {kind: dict(value) for kind, value in parameters.items() if isinstance(value, dict)}


def _kind(scaling: Mapping[str, Any]) -> Any:
    return scaling.get("type") or scaling.get("rope_type") or "default"


def _spell_rope(text: Section, values: dict[str, Any]) -> None:
    """Give the keys of earlier transformers beside ``rope_parameters``, and both names of a scaling's kind."""
    _spell_parameters(text, values)
    scaling = values.get("rope_scaling")
    if isinstance(scaling, dict) and ("type" in scaling or "rope_type" in scaling):
        scaling.setdefault("type", _kind(scaling))
        scaling.setdefault("rope_type", _kind(scaling))


def _spell_parameters(text: Section, values: dict[str, Any]) -> None:
    parameters = text.section("rope_parameters")
    if not parameters.values:
        return
    whole = {**parameters.values}
    nested = _nested(whole)
    keys: tuple[str, ...] = _IN_PARAMETERS
    if nested:
        local = nested.get("sliding_attention")
        if local and local.get("rope_theta") is not None:
            _agree(text, values, "rope_local_base_freq", local["rope_theta"])
        whole = nested.get("full_attention") or next(iter(nested.values()))
        keys = _IN_PARAMETERS[:1]  # the rotated part differs by layer type, for which there is no older key
    for key in keys:
        if whole.get(key) is not None:
            _agree(text, values, key, whole[key])
    for older, key in _OLDER.items():
        if values.get(key) is not None:
            values.setdefault(older, values[key])
    kind = _kind(whole)
    scaling = {key: value for key, value in whole.items() if key not in _IN_PARAMETERS}
    if kind != "default" and not values.get("rope_scaling"):
        values["rope_scaling"] = {**scaling, "type": kind, "rope_type": kind}


def _agree(text: Section, values: dict[str, Any], key: str, value: Any) -> None:
    if values.get(key) not in (None, value):
        raise ModelError(
            f"{text.where} contradicts itself: {key} is {values[key]}, and {value} in rope_parameters",
            "take the file from where the model was published",
        )
    values[key] = value
