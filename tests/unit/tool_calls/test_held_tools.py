"""Which tools a grammar can hold: schemas that are refused by name, ignored, or fit."""

from __future__ import annotations

import pytest

from edgepp.engine import grammar_sandbox
from edgepp.engine.request import MAX_CONSTRAINT_BYTES, Constraint
from edgepp.errors import UsageError
from edgepp.tool_calls.tool_use import Tool, ToolUse
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answers import NOW
from tests.unit.tool_calls.grammars import is_allowed, llguidance_tokens, random_answer
from tests.unit.tool_calls.test_grammar import BOUNDED, constraint


def test_a_schema_for_the_answer_holds_text_beside_calls_and_reasoning() -> None:
    schema = Constraint(
        "json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    )
    for template in (t.LLAMA, t.QWEN, t.MISTRAL_ARGS, t.PLAIN):
        held = constraint(template, ToolUse((NOW,)), answer=schema)
        assert is_allowed(held, '{"a": 1}')
        assert not is_allowed(held, "text")
        assert (
            is_allowed(held, random_answer(constraint(template, ToolUse((BOUNDED,), "required", named="look")), 0))
            is False
        )
    assert constraint(t.LLAMA, ToolUse(), answer=schema) == schema
    thinking = constraint(t.QWEN, ToolUse(), answer=schema)
    assert is_allowed(thinking, '<think>\nHm.\n</think>\n\n{"a": 1}')
    assert is_allowed(thinking, '{"a": 1}')
    assert not is_allowed(thinking, "<think>\nHm.\n</think>\n\ntext")
    pattern = constraint(t.QWEN, ToolUse(), answer=Constraint("regex", "a/b\\/[0-9]+\n"))
    assert is_allowed(pattern, "a/b/12\n")
    with pytest.raises(UsageError, match="grammar of its own"):
        constraint(t.LLAMA, ToolUse((NOW,)), answer=Constraint("grammar", 'start: "a"'))


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (
            {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
            "parameters.properties.a.not cannot be enforced",
        ),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "iri"}}}, "format"),
        ({"$ref": "https://example.com/schema"}, "refers to another document"),
        ({"properties": {"a": {"type": "string", "pattern": "(?=x)y"}}, "required": ["a"]}, "look-around"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "does not exist"),
    ],
)
def test_what_a_grammar_cannot_hold_is_refused_of_a_strict_tool_by_its_name(schema, what) -> None:
    with pytest.raises(UsageError, match="the tool odd_one") as refused:
        constraint(t.QWEN, ToolUse((Tool("odd_one", parameters=schema, strict=True),)))
    assert what in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, "oneOf"),
    ],
)
def test_what_only_llguidance_knows_it_cannot_hold_is_refused_by_the_name_of_the_tool_as_well(schema, what) -> None:
    held = constraint(t.QWEN, ToolUse((NOW, Tool("odd_one", parameters=schema, strict=True))))
    error = grammar_sandbox.matcher(llguidance_tokens(), held.kind, held.text).get_error()
    said = grammar_sandbox.complaint(error, held.text)
    assert said.startswith('the schema of the tool "odd_one": ')
    assert what in said


def test_what_a_grammar_cannot_hold_is_ignored_of_another_tool() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "items": {"enum": [1]}}}}
    held = constraint(t.LLAMA, ToolUse((Tool("odd", parameters=schema),), "required"))
    assert is_allowed(held, '{"name": "odd", "parameters": {"a": [1, 1]}}')


def test_calls_of_no_tool_cannot_be_required() -> None:
    with pytest.raises(UsageError, match="no tools"):
        constraint(t.LLAMA, ToolUse((), "required"))
    with pytest.raises(UsageError, match="the tool lost"):
        constraint(t.LLAMA, ToolUse((NOW,), "required", named="lost"))


def test_thirty_tools_of_an_agent_fit_in_strict_mode() -> None:
    tools = tuple(agent_tool(number) for number in range(30))
    for template in (t.LLAMA, t.QWEN, t.PLAIN):
        held = constraint(template, ToolUse(tools))
        assert len(held.text.encode()) <= MAX_CONSTRAINT_BYTES
        assert is_allowed(held, "Hello")
        required = constraint(template, ToolUse(tools, "required"))
        assert random_answer(required, 0, limit=100)


def agent_tool(number: int) -> Tool:
    """A tool in the size that coding agents have: long descriptions, nested objects, enums, references."""
    text = "How this works, in detail. " * 80
    edit = {
        "type": "object",
        "description": text,
        "properties": {
            "old_string": {"type": "string", "description": text},
            "new_string": {"type": "string", "description": text},
            "replace_all": {"type": "boolean", "default": False, "description": text},
        },
        "required": ["old_string", "new_string"],
        "additionalProperties": False,
    }
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": text},
            "mode": {"type": "string", "enum": ["read", "write", "append"], "description": text},
            "limit": {"type": ["integer", "null"], "minimum": 0, "description": text},
            "edits": {"type": "array", "items": {"$ref": "#/$defs/Edit"}, "description": text},
            "options": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"deep": {"type": "boolean"}}}]},
        },
        "required": ["description", "mode", "limit", "edits", "options"],
        "additionalProperties": False,
        "$defs": {"Edit": edit},
    }
    return Tool(f"agent_tool_{number}", text, schema, strict=True)
