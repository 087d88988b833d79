"""Tools and tool choice of OpenAI's APIs as a ``ToolUse``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from edgepp.http_api.failures import RequestError
from edgepp.tool_calls.tool_use import Tool, ToolUse


class FunctionBody(msgspec.Struct):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct):
    """A tool: only functions can be called."""

    function: FunctionBody | None = None
    type: str = "function"


class AllowedTools(msgspec.Struct):
    """The tools that may be called now."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[ToolBody] = msgspec.field(default_factory=list)


class NamedTool(msgspec.Struct):
    """One tool that must be called, or the tools that may be."""

    type: Literal["function", "allowed_tools"] = "function"
    function: FunctionBody | None = None
    allowed_tools: AllowedTools | None = None


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool | None


def tool_use_of(tools: Sequence[ToolBody] | None, choice: ToolChoice, parallel: bool | None) -> ToolUse:
    """The tools that an answer may call, and how.

    Raises:
        RequestError: a tool is no function, or the choice names a tool that is not there.
    """
    known = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools or ()))
    parallel = parallel is not False
    if isinstance(choice, NamedTool):
        return _named(known, choice, parallel)
    if choice == "required" and not known:
        raise _no_tool("tool_choice requires a call, and there are no tools", "give tools, or leave out tool_choice")
    return ToolUse(known, choice or "auto", parallel=parallel)


def _tool(tool: ToolBody, where: str) -> Tool:
    function = tool.function
    if tool.type != "function" or function is None:
        raise RequestError(
            "invalid_request", f"{where} is no function", 'send {"type": "function", "function": …}', parameter=where
        )
    if not function.name:
        raise RequestError("invalid_request", f"{where}.function has no name", parameter=f"{where}.function.name")
    strict = function.strict is True
    return Tool(function.name, function.description or "", function.parameters or {}, strict, where=where)


def _named(known: tuple[Tool, ...], choice: NamedTool, parallel: bool) -> ToolUse:
    names = [tool.name for tool in known]
    if choice.allowed_tools is not None:
        allowed = [_tool(tool, "tool_choice.allowed_tools").name for tool in choice.allowed_tools.tools]
        _check(allowed, names)
        kept = tuple(tool for tool in known if tool.name in allowed)
        if not kept:
            raise _no_tool("tool_choice.allowed_tools names no tool")
        return ToolUse(kept, choice.allowed_tools.mode, parallel=parallel)
    if choice.function is None:
        raise _no_tool("tool_choice names no function")
    _check([choice.function.name], names)
    return ToolUse(known, "required", choice.function.name, parallel)


def _check(asked: Sequence[str], names: Sequence[str]) -> None:
    for name in asked:
        if name not in names:
            hint = "name one of the tools" if names else "give tools, or leave out tool_choice"
            raise _no_tool(f"tool_choice names '{name:.64}', which is not among the tools", hint)


def _no_tool(sentence: str, hint: str = "name one of the tools") -> RequestError:
    return RequestError("invalid_request", sentence, hint, parameter="tool_choice")
