"""What a request may give as tools, whichever API it comes by."""

from __future__ import annotations

import json

import pytest

from edgepp.engine.request import Constraint
from edgepp.errors import UsageError
from edgepp.tool_calls.schemas import answer_constraint, held_schema
from edgepp.tool_calls.tool_use import MAX_NAME, MAX_TOOLS, MAX_TOOLS_BYTES, Tool, ToolUse
from tests.unit.tool_calls.grammars import is_allowed

BEYOND = {
    "uniqueItems": True,
    "not": {"type": "string"},
    "if": {},
    "contains": {},
    "propertyNames": {},
    "dependentRequired": {},
    "format": "iri",
    "pattern": "^(?!x)y$",
    "minimum": 10**40,
    "$ref": "#/$defs/missing",
}


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\0", "<|im_end|>", "", "a b", "größe", "a" * (MAX_NAME + 1)])
def test_a_name_that_models_cannot_call_is_refused_by_the_place_of_the_tool(name: str) -> None:
    with pytest.raises(UsageError, match=r"^tools\[1\] has ") as refused:
        ToolUse((Tool("good"), Tool(name)))
    assert refused.value.parameter == "tools"


def test_names_of_agents_with_namespaces_are_taken() -> None:
    names = ("mcp__github__search", "github.search", "a:b/c-d", "7", "a" * MAX_NAME)
    assert len(ToolUse(tuple(map(Tool, names))).tools) == len(names)


@pytest.mark.parametrize(
    "parameters",
    [{"type": "string"}, {"type": ["object"]}, {"properties": []}, {"required": "a"}, {"required": [1]}],
)
def test_parameters_are_the_schema_of_an_object(parameters: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"tools\[3\] \(look\)") as refused:
        ToolUse((Tool("look", parameters=parameters, where="tools[3]"),))
    assert refused.value.parameter == "tools"


def test_tools_are_bounded_and_have_names_of_their_own() -> None:
    with pytest.raises(UsageError, match=r"^tools\[1\] has the name a, and so has tools\[0\]"):
        ToolUse((Tool("a"), Tool("a")))
    with pytest.raises(UsageError, match=f"may have {MAX_TOOLS}"):
        ToolUse(tuple(Tool(f"t{number}") for number in range(MAX_TOOLS + 1)))
    with pytest.raises(UsageError, match="bytes together"):
        ToolUse((Tool("a", "x" * MAX_TOOLS_BYTES),))


@pytest.mark.parametrize("key", BEYOND)
def test_what_cannot_be_held_is_left_out_or_refused_by_its_name_where_strict(key: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {key: BEYOND[key]}}, "required": ["a"]}
    held = answer_constraint(schema, strict=False)
    assert is_allowed(held, '{"a": 1, "b": "q"}')
    assert not is_allowed(held, '{"a": "1"}')
    assert key not in json.loads(held_schema(Tool("t", parameters=schema)))["properties"]["b"]
    with pytest.raises(UsageError, match=r"of the answer cannot be used: schema\.properties\.b\.") as refused:
        answer_constraint(schema, strict=True)
    assert key in str(refused.value)
    with pytest.raises(UsageError, match=r"of the tool t cannot be used: parameters\.properties\.b\."):
        held_schema(Tool("t", parameters=schema, strict=True))


def test_the_name_of_a_control_token_is_text_where_a_schema_demands_it() -> None:
    for schema in ({"const": "<|end|>"}, {"type": "string", "enum": ["[TOOL_CALLS]"]}):
        held = Constraint("json_schema", json.dumps(schema))
        text = json.dumps(schema.get("const") or "[TOOL_CALLS]")
        assert is_allowed(held, text, spell=True)
        assert not is_allowed(held, text)


def test_white_space_in_json_is_a_space_or_one_new_line() -> None:
    held = answer_constraint({"properties": {"a": {}, "b": {}}, "type": "object"}, strict=False)
    for text in ('{"a": 1, "b": 2}', '{"a":1,"b":2}', '{\n  "a": 1,\n  "b": 2\n}', '{ "a" : 1 }'):
        assert is_allowed(held, text)
    for text in ('{"a": 1\n\n,\n"b": 2}', '{"a":  1}', '{"a": 1}\n'):
        assert not is_allowed(held, text)


CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def test_an_answer_gets_no_properties_that_its_schema_does_not_name() -> None:
    """Pydantic and Zod say nothing of other properties, and a small model adds them until its answer is cut."""
    nested = {"type": "object", "properties": {"cities": {"type": "array", "items": {"$ref": "#/$defs/City"}}}}
    held = answer_constraint(nested | {"$defs": {"City": CITY}}, strict=False)
    assert is_allowed(held, '{"cities": [{"name": "Paris"}]}')
    assert not is_allowed(held, '{"cities": [{"name": "Paris", "mayor": "Anne"}]}')
    assert not is_allowed(held, '{"cities": [], "rivers": []}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        CITY | {"additionalProperties": True},
        CITY | {"required": ["name", "mayor"]},
        {"allOf": [CITY, {"type": "object", "properties": {"mayor": {"type": "string"}}}]},
    ],
)
def test_a_schema_that_means_other_properties_gets_them(schema: dict[str, object]) -> None:
    assert is_allowed(answer_constraint(schema, strict=False), '{"name": "Paris", "mayor": "Anne"}')
