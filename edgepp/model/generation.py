"""How a model's makers would have it answer: ``generation_config.json``, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepp.errors import ModelError

_LONGEST_BYTES = 1 << 24
_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, (1 << 31) - 1),
    "repetition_penalty": (0.01, 100.0),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """A model's own sampling settings; None where it states nothing."""

    do_sample: bool | None = None
    """Whether to draw tokens; otherwise the likeliest is taken, and the other fields but the penalty mean nothing."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


def generation_defaults(path: Path) -> GenerationDefaults:
    """The sampling settings in the model folder ``path``; all None if it has no ``generation_config.json``.

    Raises:
        ModelError: the file is damaged, or a value is of the wrong type or out of bounds.
    """
    form = read_json_object(path / "generation_config.json")
    sample = form.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise _wrong(path, "do_sample", "true or false", sample)
    top_k = _number(path, form, "top_k")
    if top_k is not None and not top_k.is_integer():
        raise _wrong(path, "top_k", "a whole number", top_k)
    return GenerationDefaults(
        do_sample=sample,
        temperature=_number(path, form, "temperature"),
        top_p=_number(path, form, "top_p"),
        top_k=None if top_k is None else int(top_k),
        repetition_penalty=_number(path, form, "repetition_penalty"),
    )


def end_ids(path: Path) -> set[int]:
    """The tokens that end an answer, by ``generation_config.json`` or else ``config.json``.

    Raises:
        ModelError: one of the files is damaged.
    """
    for name in ("generation_config.json", "config.json"):
        value = read_json_object(path / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if found := {token for token in ids if isinstance(token, int) and not isinstance(token, bool) and token >= 0}:
            return found
    return set()


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a small file; empty if there is no such file.

    Raises:
        ModelError: it is no regular file, is too large, cannot be read, or holds something else.
    """
    try:
        if not file.exists():
            return {}
        if not file.is_file() or file.stat().st_size > _LONGEST_BYTES:
            raise ModelError(f"{file} is not a file of settings")
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not a JSON object: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object")
    return value


def _number(path: Path, form: Mapping[str, Any], name: str) -> float | None:
    value, (low, high) = form.get(name), _BOUNDS[name]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _wrong(path, name, f"a number between {low:g} and {high:g}", value)
    return float(value)


def _wrong(path: Path, name: str, wanted: str, value: object) -> ModelError:
    return ModelError(
        f"{path / 'generation_config.json'}: {name} must be {wanted}, not {value!r:.40}",
        "correct the file, or take it away: it is optional",
    )
