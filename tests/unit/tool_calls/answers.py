"""Answers read by a parser, cut into pieces in any way."""

from collections.abc import Sequence

from edgepp.errors import EdgeppError
from edgepp.tool_calls.formats import format_of
from edgepp.tool_calls.tool_use import (
    AnswerPart,
    CallArguments,
    CallEnded,
    CallStarted,
    Reasoning,
    Text,
    Tool,
    ToolUse,
)

WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
    },
)
NOW = Tool("now")
SEARCH = Tool("brave_search", parameters={"type": "object", "properties": {"query": {"type": "string"}}})
USE = ToolUse((WEATHER, NOW, SEARCH))


def parts_of(template: str, pieces: Sequence[str], use: ToolUse = USE, prompt_end: str = "") -> list[AnswerPart | str]:
    """The parts of an answer, those of one kind in a row joined; an error as its text."""
    parser = format_of(template).parser(use, prompt_end)
    parts: list[AnswerPart | str] = []
    try:
        for piece in pieces:
            parts += parser.add(piece)
        parts += parser.finish()
    except EdgeppError as error:
        parts.append(str(error))
    return joined(parts)


def joined(parts: list[AnswerPart | str]) -> list[AnswerPart | str]:
    result: list[AnswerPart | str] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, Text | Reasoning | CallArguments) and type(last) is type(part):
            result[-1] = type(part)(last.text + part.text)
        else:
            result.append(part)
    return result


def call(name: str, arguments: str) -> list[AnswerPart]:
    return [CallStarted(name), CallArguments(arguments), CallEnded()]
