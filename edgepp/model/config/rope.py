"""Rotary position embedding, read from any of the spellings that configurations have.

Spellings: ``rope_theta`` and ``rope_scaling`` at the top level; both in ``rope_parameters`` (transformers 5), either
directly or per layer type; ``type`` or ``rope_type`` for the kind of scaling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepp.errors import ModelError
from edgepp.model.config.section import Section

_ALIASES = {"su": "longrope", "deepseek_yarn": "yarn"}


@dataclass(frozen=True)
class RopeConfig:
    """The rotary position embedding of a kind of layer."""

    base: float | None = None
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of ``kind``, with every key of the kind present."""
    rotated_part: float = 1.0
    """Fraction of each head that is rotated."""

    def to_scaling(self) -> dict[str, Any] | None:
        """The value of ``rope_scaling`` in a config.json, with both names of the kind; None where nothing is scaled."""
        if self.kind == "default":
            return None
        return {"type": self.kind, "rope_type": self.kind, **self.scaling}


def read_rope(config: Section, head_dim: int, context: int, kinds: Iterable[str] = ()) -> RopeConfig:
    """The rotary embedding that ``config`` describes for layers of ``kinds``, which must all have the same one.

    Raises:
        ModelError: a value is unusable, two spellings contradict each other, or the kinds differ.
    """
    old, new = config.section("rope_scaling"), config.section("rope_parameters")
    nested = {kind: new.section(kind) for kind, value in new.values.items() if isinstance(value, dict)}
    if nested:
        wanted = [nested[kind] for kind in dict.fromkeys(kinds) if kind in nested] or list(nested.values())
        ropes = [_one(config, section, head_dim, context) for section in wanted]
        if any(rope != ropes[0] for rope in ropes):
            raise _contradiction(config, "rope_parameters", "several rotary embeddings", "this family has one")
        rope = ropes[0]
    else:
        rope = _one(config, new, head_dim, context)
    if old.values:
        older = _one(config, old, head_dim, context)
        if new.values and older != rope:
            raise _contradiction(config, "rope_scaling", "another rotary embedding", "rope_parameters")
        return older
    return rope


def _one(config: Section, part: Section, head_dim: int, context: int) -> RopeConfig:
    kind = part.text("type", part.text("rope_type", "default"))
    if part.text("rope_type", kind) != kind:
        raise _contradiction(part, "type", kind, f"rope_type ({part.get('rope_type')})")
    kind = _ALIASES.get(kind, kind)
    return RopeConfig(
        base=_agreed(config, part, "rope_theta"),
        kind=kind,
        scaling=_scaling(kind, config, part, head_dim, context),
        rotated_part=_agreed(config, part, "partial_rotary_factor") or 1.0,
    )


def _agreed(config: Section, part: Section, key: str) -> float | None:
    """The number ``key``, from the top level or from ``part``; if both have the key, the numbers must be equal."""
    values = {section.number(key) for section in (config, part) if section.get(key) is not None}
    if len(values) > 1:
        raise _contradiction(config, key, str(config.get(key)), part.where)
    return values.pop() if values else None


def _contradiction(config: Section, key: str, value: str, other: str) -> ModelError:
    return ModelError(
        f"{config.where} contradicts itself: {key} gives {value}, unlike {other}",
        "take the file from where the model was published",
    )


def _scaling(kind: str, config: Section, part: Section, head_dim: int, context: int) -> dict[str, Any]:
    original = _original(config, part, context)
    if kind == "default":
        return {}
    if kind in ("linear", "dynamic"):
        return {"factor": part.number("factor")}
    if kind == "llama3":
        low, high = part.number("low_freq_factor", 1.0), part.number("high_freq_factor", 4.0)
        if not low < high:
            part.refuse("high_freq_factor")
        usual = {"original_max_position_embeddings": part.size("original_max_position_embeddings", 8192)}
        return {"factor": part.number("factor"), "low_freq_factor": low, "high_freq_factor": high, **usual}
    if kind == "yarn":
        return _yarn(part, original)
    if kind == "longrope":
        _refuse_unless(part, "attention_factor", None)
        factors = {key: part.numbers(key, head_dim // 2) for key in ("short_factor", "long_factor")}
        return {**factors, "original_max_position_embeddings": original}
    raise ModelError(
        f"{part.where} asks for a rotary embedding of type {kind}, which this family does not have",
        "choose another model; see `edgepp models list`",
    )


def _original(config: Section, part: Section, context: int) -> int:
    """Context of the model in positions before it was extended."""
    return part.size("original_max_position_embeddings", config.size("original_max_position_embeddings", context))


def _yarn(part: Section, original: int) -> dict[str, Any]:
    factor = part.number("factor")
    scaling: dict[str, Any] = {
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": part.number("beta_fast", 32.0),
        "beta_slow": part.number("beta_slow", 1.0),
    }
    for key in ("mscale", "mscale_all_dim"):
        if part.get(key):
            scaling[key] = part.number(key)
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    if part.get("attention_factor") is not None and not math.isclose(part.number("attention_factor"), usual):
        part.refuse("attention_factor")
    _refuse_unless(part, "truncate", True)
    return scaling


def _refuse_unless(part: Section, key: str, neutral: object) -> None:
    if part.get(key) not in (None, neutral):
        part.refuse(key)
