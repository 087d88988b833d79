"""Sampling defaults and end tokens that the authors of a model recommend, from ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepp.model.bounded_files import read_object
from edgepp.model.config.section import Section


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling options for requests that give none; a temperature of 0 takes the likeliest token."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


FALLBACK_DEFAULTS = GenerationDefaults(temperature=0.6, top_p=0.9)
"""Options for models without a recommendation: Meta's for Llama 3 Instruct, since greedy chats tend to loop."""

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1, (1 << 31) - 1),
    "repetition_penalty": (0.01, 100.0),
}


def generation_defaults(path: Path) -> GenerationDefaults:
    """The recommendation in the model folder ``path``, read as transformers does: ``do_sample`` false means greedy.

    Raises:
        ModelError: the file is damaged, or a value is out of range.
    """
    section = _read(path, "generation_config.json")
    given: dict[str, float] = {}
    for name, (low, high) in _BOUNDS.items():
        value = section.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not low <= value <= high:
            section.refuse(name)
        if name == "top_k" and value != int(value):
            section.refuse(name)
        given[name] = value
    do_sample = section.get("do_sample")
    if do_sample is None and not given:
        return FALLBACK_DEFAULTS
    greedy = do_sample is not None and not section.flag("do_sample")
    return GenerationDefaults(
        temperature=0.0 if greedy else float(given.get("temperature", 1.0)),
        top_p=float(given.get("top_p", 1.0)),
        top_k=max(0, int(given.get("top_k", 0))),
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
    )


def end_ids(path: Path) -> set[int]:
    """Ids of the tokens that end an answer, from ``generation_config.json`` or else ``config.json``.

    Raises:
        ModelError: one of the files is damaged, or gives values that are not token ids.
    """
    for name in ("generation_config.json", "config.json"):
        section = _read(path, name)
        value = section.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int for token in ids):
            section.refuse("eos_token_id")
        if found := {token for token in ids if token >= 0}:
            return found
    return set()


def _read(path: Path, name: str) -> Section:
    """The settings in one file of a model folder; empty where there is no such file."""
    try:
        return Section(f"{name} of {path.name}", read_object(path / name))
    except FileNotFoundError:
        return Section(f"{name} of {path.name}", {})
