"""Grammar of calls whose arguments stand between tags: strings as they are, other values as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_KNOWN = frozenset(["type", "properties", "required", "additionalProperties", "$defs", "definitions", "x-guidance"])


@dataclass(frozen=True)
class WrittenTags:
    """The tags around calls and arguments; ``{name}`` and ``{key}`` stand for the names, ``{is_text}`` for true where
    the argument is text."""

    call: str
    argument: str
    argument_end: str
    call_end: str


@dataclass(frozen=True)
class TaggedArgument:
    """One argument as a grammar writes it."""

    key: str
    is_required: bool
    texts: tuple[str, ...] | None = None
    """The texts that the argument may be; empty for any text; None for JSON."""
    schema: str = ""
    """The schema of JSON."""


def arguments_of(schema_text: str) -> list[TaggedArgument] | None:
    """The arguments that a prepared schema allows; None if tags cannot say all of them."""
    schema = json.loads(schema_text)
    properties = schema.get("properties")
    if not isinstance(properties, dict) or schema.get("additionalProperties") is not False:
        return None
    required = schema.get("required", [])
    if (
        not schema.keys() <= _KNOWN
        or not isinstance(required, list)
        or not set(map(str, required)) <= properties.keys()
    ):
        return None
    shared = {key: schema[key] for key in ("$defs", "definitions", "x-guidance") if key in schema}
    arguments = [_argument(key, value, key in required, shared) for key, value in properties.items()]
    return [one for one in arguments if one is not None] if all(arguments) else None


def _argument(key: str, schema: Any, is_required: bool, shared: Mapping[str, Any]) -> TaggedArgument | None:
    if not isinstance(schema, dict) or any(character in key for character in '<>"\n'):
        return None
    texts = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if isinstance(texts, list) and texts and all(isinstance(one, str) for one in texts):
        if any("<" in one for one in texts):
            return None  # a text may look like the tag behind it
        return TaggedArgument(key, is_required, tuple(texts)) if schema.keys() <= {"enum", "const", "type"} else None
    if schema == {"type": "string"}:
        return TaggedArgument(key, is_required, ())
    if schema.get("type") not in ("integer", "number", "boolean", "array", "object"):
        return None  # text or JSON, which a reader could not tell apart
    return TaggedArgument(key, is_required, None, json.dumps({**shared, **schema}))
