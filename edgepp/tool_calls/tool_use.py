"""The tools that an answer may call, as asked by a client, and the parts of an answer. Pure data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from edgepp.errors import UsageError

MAX_TOOLS = 512
"""Limit of the tools of one request."""
MAX_NAME = 128
"""Limit of the characters of the name of a tool."""
MAX_TOOLS_BYTES = 1 << 20
"""Limit of the bytes of names, descriptions and schemas of all tools together."""
_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")


@dataclass(frozen=True)
class Tool:
    """One function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of the arguments, an object; empty for any object."""
    strict: bool = False
    """Whether the arguments must match ``parameters``, held by a grammar."""
    listed: bool = True
    """Whether the prompt lists the tool; False for a tool that a message describes, so that the list stays as it is."""
    where: str = field(default="", compare=False)
    """The place of the tool in the request, such as ``tools[3]``; only errors show it."""


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and whether and how they are to be called.

    Raises:
        UsageError: a tool cannot be called by its name, or its parameters are no schema of an object: the sentence has
            the place of the tool. Or the tools are too many, or too large.
    """

    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "none", "required"] = "auto"
    """``required``: at least one call, of ``named`` if that is given."""
    named: str | None = None
    """The only tool that may be called."""
    parallel: bool = True
    """Whether one answer may have several calls."""

    def __post_init__(self) -> None:
        if len(self.tools) > MAX_TOOLS:
            raise UsageError(
                f"there are {len(self.tools)} tools, and a request may have {MAX_TOOLS}", "give fewer tools"
            )
        names: dict[str, str] = {}
        size = 0
        for index, tool in enumerate(self.tools):
            where = tool.where or f"tools[{index}]"
            _check_name(tool.name, where)
            if tool.name in names:
                message = f"{where} has the name {tool.name}, and so has {names[tool.name]}"
                raise UsageError(message, "give each tool a name of its own", parameter="tools")
            names[tool.name] = where
            size += _checked_size(tool, where)
        if size > MAX_TOOLS_BYTES:
            message = f"the tools have {size} bytes together, and may have {MAX_TOOLS_BYTES}"
            raise UsageError(message, "give fewer tools, or shorter descriptions", parameter="tools")


def _check_name(name: str, where: str) -> None:
    if not name:
        raise UsageError(f"{where} has no name", "give each tool a name", parameter="tools")
    if len(name) > MAX_NAME:
        raise UsageError(f"{where} has a name of {len(name)} characters", f"use {MAX_NAME} at most", parameter="tools")
    if _NAME.fullmatch(name) is None:
        message = f"{where} has the name {name!r:.80}, which models cannot call"
        raise UsageError(message, "use only letters a-z and A-Z, digits, and _ - . : /", parameter="tools")


def _checked_size(tool: Tool, where: str) -> int:
    """The bytes of a tool whose schema is that of an object."""
    parameters = tool.parameters
    if parameters.get("type") not in (None, "object"):
        message = f"the parameters of {where} ({tool.name}) have the type {parameters['type']!r:.40}, not 'object'"
        raise UsageError(
            message, "give the schema of an object, with an argument for each of its properties", parameter="tools"
        )
    if not isinstance(parameters.get("properties"), Mapping | None):
        message = f"the properties in the parameters of {where} ({tool.name}) are no JSON object"
        raise UsageError(message, "give an object with a schema for each argument", parameter="tools")
    required = parameters.get("required")
    if required is not None and not (isinstance(required, list) and all(isinstance(one, str) for one in required)):
        message = f"'required' in the parameters of {where} ({tool.name}) is no list of names"
        raise UsageError(message, "give a list with the names of arguments", parameter="tools")
    try:
        return sum(len(text) for text in (tool.name, tool.description, json.dumps(parameters, ensure_ascii=False)))
    except RecursionError as error:
        raise UsageError(f"the parameters of {where} ({tool.name}) are nested too deeply", parameter="tools") from error


@dataclass(frozen=True)
class Text:
    """Text of the answer outside of calls and reasoning."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text of the reasoning before the answer."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call of the tool ``name`` begins."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the arguments of the call that began last, as JSON text."""

    text: str


@dataclass(frozen=True)
class CallEnded:
    """The call that began last is whole: its ``CallArguments`` joined are the JSON text of one object."""


AnswerPart: TypeAlias = Text | Reasoning | CallStarted | CallArguments | CallEnded
