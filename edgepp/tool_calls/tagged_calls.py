"""Calls whose arguments each stand between tags, as Qwen-Coder, GLM, MiniMax and others write them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepp.tool_calls.pythonic_calls import literal
from edgepp.tool_calls.readers import Call
from edgepp.tool_calls.tool_use import Tool

_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)
_WORDS = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class TaggedForm:
    """The tags of one family."""

    call: re.Pattern[str]
    """Text that begins a call; its first group is the name."""
    argument: re.Pattern[str]
    """Text that begins an argument; its first group is the key, its second, if any, ``true`` for text as it stands."""
    argument_end: str
    call_end: str = ""
    """Text that ends a call; empty if the end of the text ends it."""
    json_object: re.Pattern[str] | None = None
    """Text that may stand in place of all arguments; its first group is their JSON."""

    def parse(self, text: str, tools: Mapping[str, Tool]) -> list[Call] | None:
        """The calls in ``text``, in time linear in its length; None if the text is not whole calls and nothing else."""
        calls: list[Call] = []
        at = 0
        while found := self.call.match(text, at):
            arguments, at = self._arguments(text, found.end(), tools.get(found[1]))
            calls.append((found[1], arguments))
            if not text.startswith(self.call_end, at := _skip(text, at)):
                return None
            at = _skip(text, at + len(self.call_end))
        return calls if calls and at == len(text) else None

    def _arguments(self, text: str, at: int, tool: Tool | None) -> tuple[dict[str, Any], int]:
        arguments: dict[str, Any] = {}
        if self.json_object is not None and (whole := self.json_object.match(text, at)):
            value = _as_json(whole[1])
            return (value, whole.end()) if isinstance(value, dict) else ({}, at)
        while found := self.argument.match(text, at):
            end = text.find(self.argument_end, found.end())
            if end < 0:
                break
            value = text[found.end() : end]
            is_text = found.re.groups > 1 and found[2] == "true"
            arguments[found[1]] = value if is_text else converted(value, tool, found[1])
            at = end + len(self.argument_end)
        return arguments, at


def converted(text: str, tool: Tool | None, key: str) -> Any:
    """The value that the text of an argument means, by the schema of the argument."""
    if cdata := _CDATA.fullmatch(text):
        return cdata[1]
    text = text.removeprefix("\n").removesuffix("\n")
    types = _types((tool.parameters.get("properties") or {}).get(key) if tool else None)
    stripped = text.strip()
    if "string" in types and not (stripped == "null" and "null" in types):
        return text
    if stripped in _WORDS:
        return _WORDS[stripped]
    value = _as_json(stripped)
    if value is _NO_JSON and stripped[:1] in ("{", "["):
        value = literal(stripped)  # templates that print an object of the history print Python's form
        return text if value is None else value
    return text if value is _NO_JSON else value


_NO_JSON = object()


def _as_json(text: str) -> Any:
    try:
        return json.loads(text, strict=False, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _NO_JSON


def _no_constant(_: str) -> Any:
    raise ValueError("NaN and infinities are not JSON")


def _types(schema: Any) -> set[str]:
    """The types that a schema of an argument names, on its own level and in its alternatives."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    types = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    if isinstance(schema.get("enum"), list) and all(isinstance(one, str) for one in schema["enum"]):
        types.add("string")
    for key in ("anyOf", "oneOf"):
        alternatives = schema.get(key)
        for one in alternatives if isinstance(alternatives, list) else ():
            types |= _types(one)
    return types


def _skip(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


QWEN_CODER = TaggedForm(
    re.compile(r"\s*<function=([^\s<>]+)>"), re.compile(r"\s*<parameter=([^<>]+)>"), "</parameter>", "</function>"
)
GLM = TaggedForm(
    re.compile(r"\s*([^\s<]+)"), re.compile(r"\s*<arg_key>([^<]*)</arg_key>\s*<arg_value>"), "</arg_value>"
)
LONGCAT = TaggedForm(
    re.compile(r"\s*([^\s<]+)"),
    re.compile(r"\s*<longcat_arg_key>([^<]*)</longcat_arg_key>\s*<longcat_arg_value>"),
    "</longcat_arg_value>",
)
MINIMAX = TaggedForm(
    re.compile(r'\s*<invoke name="?([^">\s]+)"?>'),
    re.compile(r'\s*<parameter name="?([^">]+)"?>'),
    "</parameter>",
    "</invoke>",
)
DEEPSEEK = TaggedForm(
    re.compile(r'\s*<｜DSML｜invoke name="([^"<>]+)">'),
    re.compile(r'\s*<｜DSML｜parameter name="([^"<>]+)"(?: string="(true|false)")?>'),
    "</｜DSML｜parameter>",
    "</｜DSML｜invoke>",
)
MINICPM = TaggedForm(re.compile(r'\s*"?([^">\s]+)"?\s*>'), re.compile(r'\s*<param name="?([^">]+)"?\s*>'), "</param>")
MUSE = TaggedForm(
    re.compile(r'\s*<atem:invoke\s+name="([^"<>]+)">'),
    re.compile(r'\s*<atem:parameter\s+name="([^"<>]+)"[^<>]*>'),
    "</atem:parameter>",
    "</atem:invoke>",
)
KIMI_K3 = TaggedForm(
    re.compile(r'\s*<\|open\|>call tool="([^"<>]+)"[^<>]*<\|sep\|>'),
    re.compile(r'\s*<\|open\|>argument key="([^"<>]+)"[^<>]*<\|sep\|>'),
    "<|close|>argument<|sep|>",
    "<|close|>call<|sep|>",
    re.compile(r"\s*<\|open\|>json[^<>]*<\|sep\|>(.*?)<\|close\|>json<\|sep\|>", re.DOTALL),
)
