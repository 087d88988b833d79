"""JSON schemas of tools and answers, prepared for a grammar: annotations and unsupported keys are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from edgepp.engine.grammar_sandbox import pattern_fault
from edgepp.engine.request import Constraint
from edgepp.errors import UsageError
from edgepp.tool_calls.tool_use import Tool

MAX_DEPTH = 64
"""Limit of schemas inside each other."""
MAX_NUMBER = 1 << 53
"""The smallest number that is no longer a limit which can be held."""
MAX_COUNT = 1_000_000
"""Largest number of characters, items or properties that a limit in a schema may name."""
_BOUNDS = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
_COUNTS = frozenset(["minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"])
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
    | _BOUNDS
    | _COUNTS
    | frozenset(["$ref", "$id", "$anchor", "type", "enum", "const", "required", "pattern", "format"])
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
        "unevaluatedItems",
        "additionalItems",
        "uniqueItems",
        "minContains",
        "maxContains",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveRef",
    )
)
"""Keys that restrict values, which llguidance does not know; keys that no standard knows restrict nothing."""
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
    not ``strict``, what llguidance cannot hold is left out.

    Raises:
        UsageError: the tool is ``strict``, and llguidance cannot hold a part of its schema.
    """
    source = _Source(f"of the tool {tool.name:.60}", tool.strict, tool.parameters)
    schema = _prepared(dict(tool.parameters), source, "parameters", 0)
    if "$ref" not in schema:
        schema.setdefault("type", "object")
    schema["x-guidance"] = {**FORMAT, "lenient": not tool.strict}
    return json.dumps(schema)


def answer_constraint(schema: Mapping[str, Any], strict: bool) -> Constraint:
    """The constraint of an answer by ``schema``; unless ``strict``, without keys that llguidance cannot hold.

    Objects with named properties get no others unless the schema says so: classes become schemas that say nothing of
    others, and a model that may add properties adds them without end.

    Raises:
        UsageError: the answer is to be held ``strict``, and llguidance cannot hold a part of the schema; or it is too
            large.
    """
    prepared = _prepared(dict(schema), _Source("of the answer", strict, schema), "schema", 0)
    if not strict and '"oneOf"' in json.dumps(prepared):  # alternatives that overlap are held like anyOf
        prepared["x-guidance"] = {"lenient": True}
    return Constraint("json_schema", json.dumps(prepared, ensure_ascii=False, separators=(",", ":")))


@dataclass(frozen=True)
class _Source:
    """Owner of a schema, and whether every key of the schema must be held."""

    owner: str
    strict: bool
    root: Mapping[str, Any]

    def refused(self, path: str, what: str) -> UsageError:
        return UsageError(
            f"the schema {self.owner} cannot be used: {path:.200} {what}",
            "leave it out, or set strict to false" if self.strict else "correct the schema",
        )


def _prepared(schema: Any, source: _Source, path: str, depth: int, narrow: bool = True) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    if depth > MAX_DEPTH:
        raise source.refused(path, "is nested too deeply")
    prepared: dict[str, Any] = {}
    for key, value in schema.items():
        if key not in _KNOWN | _UNSUPPORTED or (key == "format" and str(value) in _SIZES):
            continue
        if (value is None and key != "const") or (key == "uniqueItems" and value is False):
            continue
        where = f"{path}.{key}"
        fault = _fault(key, value, source.root)
        if fault and source.strict:
            raise source.refused(where, fault)
        if not fault:
            prepared[key] = _inner(key, value, source, where, depth + 1)
    if narrow and _is_closed(prepared):
        prepared["additionalProperties"] = False
    return prepared


def _fault(key: str, value: Any, root: Mapping[str, Any]) -> str:
    """Reason why llguidance cannot hold a key with this value; empty if it can."""
    if key in _UNSUPPORTED or (key == "format" and str(value) not in _FORMATS):
        return "cannot be enforced"
    if key == "$ref":
        return _reference_fault(value, root)
    if key in _BOUNDS and not (_is_number(value) and abs(value) < MAX_NUMBER):
        return "is no number below 2^53, and cannot be enforced"
    if key in _COUNTS and not (_is_number(value) and value == int(value) and 0 <= value <= MAX_COUNT):
        return f"is no whole number from 0 to {MAX_COUNT}, and cannot be enforced"
    if key == "pattern" and (not isinstance(value, str) or pattern_fault(value)):
        return "cannot be enforced: " + (pattern_fault(value) if isinstance(value, str) else "it is no text")
    if key == "patternProperties" and isinstance(value, Mapping):
        return next((f"cannot be enforced: {fault}" for fault in map(pattern_fault, value) if fault), "")
    return ""


def _reference_fault(value: Any, root: Any) -> str:
    reference = str(value)
    if not reference.startswith("#"):
        return "refers to another document"
    found = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return "refers to what does not exist"
    return "" if reference == "#" or reference.startswith("#/") else "cannot be enforced"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _inner(key: str, value: Any, source: _Source, path: str, depth: int) -> Any:
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _prepared(one, source, f"{path}.{name}", depth) for name, one in value.items()}
    if key in _MANY and isinstance(value, list):
        narrow = key != "allOf"
        return [_prepared(one, source, f"{path}[{index}]", depth, narrow) for index, one in enumerate(value)]
    if key in _ONE:
        return _prepared(value, source, path, depth)
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
