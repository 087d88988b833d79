"""Anthropic's content blocks as messages of a chat template. Every message keeps its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepp.http_api.anthropic_api.errors import invalid
from edgepp.http_api.anthropic_api.message_body import Block, InputMessage, ToolDefinition
from edgepp.http_api.anthropic_api.message_tools import availability, changed_tool
from edgepp.http_api.body_decoding import converted
from edgepp.http_api.failures import RequestError
from edgepp.model.text.conversation import Message

VOLATILE_HEADER = "x-anthropic-billing-header:"
"""Beginning of a system block that changes with every request of Claude Code and is not meant for the model."""

_SERVER_BLOCKS = ("server_tool_use", "mcp_tool_use", "mcp_tool_listing", "redacted_thinking", "fallback")
"""Blocks that say nothing to another model; so do blocks that end in ``_tool_result``."""


def _is_of_servers(block: Block) -> bool:
    """Whether ``block`` tells of a tool of Anthropic's servers, or of what such a server hides."""
    return block.type in _SERVER_BLOCKS or block.type.endswith("_tool_result")


@dataclass(frozen=True)
class MessageReader:
    """Reader of the messages of one request, in their order."""

    unlisted: Mapping[str, ToolDefinition]
    """The tools that the model hears of where the messages name them."""
    _called: dict[str, str] = field(default_factory=dict)
    """The name of the tool of each call so far, by the call's id."""

    def system(self, system: str | list[Block] | None) -> Iterator[Message]:
        """The system prompt as one message, or none; volatile headers are dropped."""
        blocks = [Block("text", text=system)] if isinstance(system, str) else system or []
        texts = [self._text(block, f"system[{index}]") for index, block in enumerate(blocks)]
        kept = [text for text in texts if text and not text.startswith(VOLATILE_HEADER)]
        if kept:
            yield {"role": "system", "content": "\n\n".join(kept)}

    def messages(self, message: InputMessage, where: str) -> Iterable[Message]:
        """One message of the API; ``where`` is its place in the body.

        Raises:
            RequestError: a block has content that the model cannot take.
        """
        content = message.content
        blocks = content if isinstance(content, list) else [Block("text", text=content)]
        if message.role == "assistant":
            return [self._assistant(blocks, where)]
        return self._user(message.role, blocks, where)

    def _user(self, role: str, blocks: list[Block], where: str) -> Iterator[Message]:
        """Results of tools as messages of their own, and the texts between them, in the order given."""
        texts: list[str] = []
        for index, block in enumerate(blocks):
            place = f"{where}.content[{index}]"
            if _is_of_servers(block):
                continue
            if block.type != "tool_result":
                texts.append(self._text(block, place))
                continue
            if texts:
                yield {"role": role, "content": "\n".join(texts)}
                texts = []
            yield self._result(block, place)
        if texts or not blocks:
            yield {"role": role, "content": "\n".join(texts)}

    def _result(self, block: Block, where: str) -> Message:
        content = self._content(block.content, f"{where}.content")
        text = f"Error: {content or 'the tool failed'}" if block.is_error else content
        identity = block.tool_use_id or ""
        result = {"role": "tool", "tool_call_id": identity, "content": text}
        return {**result, "name": self._called[identity]} if identity in self._called else result

    def _content(self, content: Any, where: str) -> str:
        """The text of a tool's result: null, a string or blocks."""
        content = converted(content, str | list[Block] | None, where)
        if not isinstance(content, list):
            return content or ""
        return "\n".join(self._text(part, f"{where}[{index}]") for index, part in enumerate(content))

    def _assistant(self, blocks: list[Block], where: str) -> Message:
        text, reasoning, calls = "", "", []
        for index, block in enumerate(blocks):
            place = f"{where}.content[{index}]"
            if block.type == "tool_use":
                calls.append(self._call(block, place))
            elif block.type == "thinking":
                reasoning += block.thinking or ""
            elif not _is_of_servers(block):
                text += self._text(block, place)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message

    def _call(self, block: Block, where: str) -> dict[str, Any]:
        arguments = {} if block.input is None else block.input
        if not block.name or not isinstance(arguments, dict):
            hint = "send the block as it was answered"
            raise invalid(where, "a tool_use needs a name, and an object as its input", hint)
        identity = block.id or ""
        self._called[identity] = block.name
        return {"id": identity, "type": "function", "function": {"name": block.name, "arguments": arguments}}

    def _document(self, block: Block, source: Mapping[str, Any], where: str) -> str:
        """The title of a document, what the client says about it, and its text, which may come as blocks."""
        if source["type"] == "text":
            text = str(source.get("data", ""))
        else:
            text = self._content(source.get("content"), f"{where}.source.content")
        return "\n".join(part for part in (block.title, block.context, text) if part)

    def _text(self, block: Block, where: str) -> str:
        """The text of a block that has some."""
        source = block.source if isinstance(block.source, dict) else {}
        match block.type:
            case "text":
                return block.text or ""
            case "document" if source.get("type") in ("text", "content"):
                return self._document(block, source, where)
            case "search_result":
                parts = block.content if isinstance(block.content, list) else []
                texts = [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
                return "\n".join([block.title or "", *texts])
            case "compaction":
                return str(block.content or "")
            case "tool_reference":
                return availability(block.tool_name or "", self.unlisted.get(block.tool_name or ""))
            case "tool_addition":
                name = changed_tool(block.tool)
                return availability(name, self.unlisted.get(name))
            case "tool_removal":
                return f"The tool {changed_tool(block.tool)} is no longer available."
        raise RequestError(
            "unsupported_content",
            f"{where}: the model takes text, and this is a block of type '{block.type}'",
            "leave the block out, or describe it in text",
            parameter=where,
        )
