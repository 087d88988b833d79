"""Configurations of families that mlx-lm alone runs: what counts of them, and both old and new spellings of rotations.

mlx-lm's families read either the keys of today or those of earlier transformers, and use a default in silence where
they find neither. So a normalised file holds both, in agreement.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from edgepp.errors import ModelError
from edgepp.model.quantisation import Quantisations
from edgepp.model.section import Section

_IDLE = frozenset(
    {
        "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
        "attention_dropout", "hidden_dropout", "resid_dropout", "embd_dropout", "pretraining_tp", "bos_token_id",
        "eos_token_id", "pad_token_id", "unk_token_id", "quantization", "quantization_config", "torchscript",
        "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing", "auto_map",
    }
)  # fmt: skip
"""Keys that change nothing of what a model computes, or that are written anew."""

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


def _spell_rope(text: Section, values: dict[str, Any]) -> None:
    """Give the keys of earlier transformers beside ``rope_parameters``, where those are there."""
    parameters = text.section("rope_parameters")
    if not parameters.values:
        return
    whole = {**parameters.values}
    nested = {kind: dict(value) for kind, value in whole.items() if isinstance(value, dict)}
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
    if values.get("rope_theta") is not None:
        values.setdefault("rotary_emb_base", values["rope_theta"])
    if values.get("partial_rotary_factor") is not None:
        values.setdefault("rotary_pct", values["partial_rotary_factor"])
    kind = whole.get("type") or whole.get("rope_type") or "default"
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
