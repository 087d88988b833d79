"""The tools of a request: those that the prompt lists, and those that the messages tell of.

Clients load tools in mid-conversation. Listing such a tool at the beginning of the prompt would lose all that the
stages hold of the conversation, so the model is told where the client tells it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from edgepp.http_api.anthropic_api.errors import invalid
from edgepp.http_api.anthropic_api.message_body import Block, CountTokensBody, ToolDefinition
from edgepp.tool_calls.tool_use import Tool, ToolUse

_CHOICES: Mapping[str, Literal["auto", "none", "required"]] = {
    "auto": "auto",
    "none": "none",
    "any": "required",
    "tool": "required",
}


def tool_use(body: CountTokensBody) -> ToolUse:
    """The tools that the model may call; tools of Anthropic's servers are left out.

    Raises:
        RequestError: ``tool_choice`` wants a tool that is not among the tools.
    """
    given = enumerate(body.tools or ())
    listed = [_tool(tool, f"tools[{index}]", listed=True) for index, tool in given if not tool.defer_loading]
    names = {tool.name for tool in listed if tool is not None}
    later = unlisted(body)
    wanted = [name for name in dict.fromkeys(_told(body)) if name in later and name not in names]
    told = [_tool(later[name], f"the tool {name!r:.80}", listed=False) for name in wanted]
    tools = tuple(tool for tool in (*listed, *told) if tool is not None)
    choice = body.tool_choice
    if choice is None:
        return ToolUse(tools)
    if choice.type in ("any", "tool") and not tools:
        raise invalid("tool_choice", "there is no tool to call", "give tools with an input_schema")
    if choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        raise invalid("tool_choice.name", f"there is no tool '{choice.name!s:.64}'", "name one of the tools")
    named = choice.name if choice.type == "tool" else None
    return ToolUse(tools, _CHOICES[choice.type], named, parallel=not choice.disable_parallel_tool_use)


def unlisted(body: CountTokensBody) -> dict[str, ToolDefinition]:
    """The tools that the messages may tell of, by name: deferred ones, and those that messages define."""
    tools = {tool.name: tool for tool in body.tools or () if tool.defer_loading}
    for block in _blocks(body):
        definition = _definition(block.tool)
        if definition is not None:
            tools[definition.name] = definition
    return tools


def availability(name: str, definition: ToolDefinition | None) -> str:
    """Text for the model about a tool that the model may call from now on."""
    if definition is None or definition.input_schema is None:
        return f"The tool {name} is available."
    shown = {"description": definition.description or "", "parameters": definition.input_schema}
    return f"The tool {name} is available: {json.dumps(shown)}"


def changed_tool(tool: Any) -> str:
    """The name of the tool that a ``tool_addition`` or ``tool_removal`` is about."""
    given = tool if isinstance(tool, dict) else {}
    definition = given.get("definition")
    return str((definition if isinstance(definition, dict) else given).get("name", ""))


def _tool(tool: ToolDefinition, where: str, listed: bool) -> Tool | None:
    if tool.input_schema is None:
        return None
    return Tool(tool.name, tool.description or "", tool.input_schema, bool(tool.strict), listed, where)


def _told(body: CountTokensBody) -> Iterator[str]:
    """The names of tools that the messages tell of, in order."""
    for block in _blocks(body):
        if block.type == "tool_addition":
            yield changed_tool(block.tool)
        for part in block.content if isinstance(block.content, list) else ():
            if isinstance(part, dict) and part.get("type") == "tool_reference":
                yield str(part.get("tool_name"))


def _blocks(body: CountTokensBody) -> Iterator[Block]:
    for message in body.messages:
        yield from message.content if isinstance(message.content, list) else ()


def _definition(tool: Any) -> ToolDefinition | None:
    try:
        return msgspec.convert(tool["definition"], ToolDefinition)
    except (msgspec.ValidationError, LookupError, TypeError):
        return None
