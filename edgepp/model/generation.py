"""How a model's makers want its tokens drawn: ``generation_config.json``."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepp.errors import ModelError

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class GenerationDefaults:
    """What to draw with where a user says nothing else; a temperature of 0 takes the likeliest token."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


UNSAID = GenerationDefaults(temperature=0.6, top_p=0.9)
"""For a model whose makers say nothing: what Meta gives for the Llama 3 Instruct models. Greedy chats tend to loop."""

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1, 1 << 31),
    "repetition_penalty": (0.01, 100.0),
}


def generation_defaults(path: Path) -> GenerationDefaults:
    """What the model folder ``path`` recommends, read as transformers does: with ``do_sample`` false it is greedy.

    Raises:
        ModelError: the file is damaged, or a value is not usable.
    """
    file = path / "generation_config.json"
    form = _read(file)
    said: dict[str, float] = {}
    for name, (low, high) in _BOUNDS.items():
        value = form.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not low <= value <= high:
            raise ModelError(f"{file}: {name} must be a number from {low:g} to {high:g}, not {value!r:.40}")
        said[name] = value
    draws = form.get("do_sample")
    if draws is not None and type(draws) is not bool:
        raise ModelError(f"{file}: do_sample must be true or false, not {draws!r:.40}")
    if draws is None and not said:
        return UNSAID
    return GenerationDefaults(
        temperature=0.0 if draws is False else float(said.get("temperature", 1.0)),
        top_p=float(said.get("top_p", 1.0)),
        top_k=max(0, int(said.get("top_k", 0))),
        repetition_penalty=float(said.get("repetition_penalty", 1.0)),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        about = file.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(about.st_mode) or about.st_size > _MOST_BYTES:
        raise ModelError(f"{file} is not a file of at most {_MOST_BYTES} bytes")
    try:
        form = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(form, dict):
        raise ModelError(f"{file} does not hold a JSON object")
    return form
