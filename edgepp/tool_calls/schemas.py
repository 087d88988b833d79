"""JSON schemas of tools, prepared for a grammar: without annotations, and without what llguidance cannot hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgepp.errors import UsageError
from edgepp.tool_calls.tool_use import Tool

MAX_DEPTH = 64
"""Schemas inside each other."""
_ANNOTATIONS = frozenset(
    (
        "$schema",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "nullable",
        "contentMediaType",
        "contentEncoding",
        "discriminator",
        "xml",
        "externalDocs",
        "strict",
    )
)
_ONE = frozenset(
    (
        "additionalProperties",
        "items",
        "contains",
        "not",
        "if",
        "then",
        "else",
        "propertyNames",
        "unevaluatedProperties",
    )
)
"""Keys whose value is a schema."""
_MANY = frozenset(["anyOf", "oneOf", "allOf", "prefixItems"])
"""Keys whose value is a list of schemas."""
_NAMED = frozenset(["properties", "patternProperties", "$defs", "definitions"])
"""Keys whose value is an object of schemas."""
_KNOWN = (
    _ONE
    | _MANY
    | _NAMED
    | frozenset(
        (
            "$ref",
            "$id",
            "$anchor",
            "type",
            "enum",
            "const",
            "required",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "minLength",
            "maxLength",
            "pattern",
            "format",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "multipleOf",
        )
    )
)
_UNSUPPORTED = frozenset(
    (
        "contains",
        "not",
        "if",
        "then",
        "else",
        "propertyNames",
        "unevaluatedProperties",
        "$anchor",
    )
)
_FORMATS = frozenset(
    (
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
    )
)
_SIZES = frozenset(["int32", "int64", "float", "double"])
"""Formats that say how a program stores a number."""
FORMAT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""JSON on one line, as models learn calls; a model can write white space of any length until ``max_tokens``."""
_COMBINING = frozenset(["$ref", "anyOf", "oneOf", "allOf", "patternProperties"])


def any_object() -> str:
    """The schema of any JSON object, for a grammar."""
    return json.dumps({"type": "object", "x-guidance": FORMAT})


def held_schema(tool: Tool) -> str:
    """The schema that a grammar holds the arguments of ``tool`` to, as JSON text.

    Annotations are left out. Objects with named properties get no others unless the schema says so. Of a tool that is
    not ``strict``, keys that llguidance cannot hold are ignored.

    Raises:
        UsageError: the tool is ``strict``, and llguidance cannot hold a part of its schema.
    """
    schema = _prepared(dict(tool.parameters), tool, "parameters", 0)
    if "$ref" not in schema:
        schema.setdefault("type", "object")
    schema["x-guidance"] = {**FORMAT, "lenient": not tool.strict}
    return json.dumps(schema)


def _prepared(schema: Any, tool: Tool, path: str, depth: int, narrow: bool = True) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    if depth > MAX_DEPTH:
        raise _refused(tool, path, "is nested too deeply")
    prepared: dict[str, Any] = {}
    for key, value in schema.items():
        where = f"{path}.{key}"
        if key in _ANNOTATIONS or key.startswith("x-") or (key == "format" and str(value) in _SIZES):
            continue
        if key in _UNSUPPORTED or key not in _KNOWN or (key == "format" and str(value) not in _FORMATS):
            if tool.strict:
                raise _refused(tool, where, "cannot be enforced")
            continue
        if key == "$ref" and not str(value).startswith("#"):
            raise _refused(tool, where, "refers to another document")
        prepared[key] = _inner(key, value, tool, where, depth + 1)
    if narrow and _is_closed(prepared):
        prepared["additionalProperties"] = False
    return prepared


def _inner(key: str, value: Any, tool: Tool, path: str, depth: int) -> Any:
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _prepared(one, tool, f"{path}.{name}", depth) for name, one in value.items()}
    if key in _MANY and isinstance(value, list):
        narrow = key != "allOf"
        return [_prepared(one, tool, f"{path}[{index}]", depth, narrow) for index, one in enumerate(value)]
    if key in _ONE:
        return _prepared(value, tool, path, depth)
    return value


def _is_closed(schema: Mapping[str, Any]) -> bool:
    """Whether an object has named properties and says nothing of others."""
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(properties, Mapping)
        and "additionalProperties" not in schema
        and not _COMBINING & schema.keys()
        and isinstance(required, list)
        and all(isinstance(name, str) and name in properties for name in required)
    )


def _refused(tool: Tool, path: str, what: str) -> UsageError:
    return UsageError(
        f"the schema of the tool {tool.name:.60} cannot be used: {path:.200} {what}",
        "leave it out, or set strict to false" if tool.strict else "correct the schema",
    )
