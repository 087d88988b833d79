"""Anthropic's messages as a ``GenerationRequest``: system prompt, content blocks, tools and options.

Every message keeps its place, so that the next turn of a conversation begins with all of this turn. ``cache_control``
only decides how the usage is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.http_api.anthropic_api.message_body import (
    Block,
    CountTokensBody,
    InputMessage,
    MessagesBody,
    OutputFormat,
    Thinking,
    ToolDefinition,
)
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationRequest
from edgepp.http_api.model_service import ServedModel
from edgepp.model.text.conversation import Conversation, Message
from edgepp.tool_calls.tool_use import Tool, ToolUse

VOLATILE_HEADER = "x-anthropic-billing-header:"
"""How a system block begins that changes with every request of Claude Code and is not meant for the model."""

UNLIMITED_TOKENS = 1 << 30
_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that no chat template knows, as the nearest that templates know."""
_SERVER_BLOCKS = ("server_tool_use", "mcp_tool_use", "redacted_thinking", "fallback")
"""Blocks of an assistant that say nothing to another model; so do blocks that end in ``_tool_result``."""


def generation_request(body: MessagesBody, model: ServedModel) -> GenerationRequest:
    """The question of ``body``.

    Raises:
        RequestError: a message, a tool or an option cannot be had; the sentence names it.
        UsageError: an option is out of its range.
    """
    options = GenerateOptions(
        max_tokens=_max_tokens(body.max_tokens),
        stop=tuple(one for one in body.stop_sequences or () if one),
        sampling=_sampling(body, model),
        constraint=_constraint(body),
    )
    return GenerationRequest(conversation(body), options, body.model or "", tool_use=tool_use(body))


def conversation(body: CountTokensBody) -> Conversation:
    """The messages of ``body`` as a chat template takes them, the system prompt first.

    Raises:
        RequestError: a message has content that the model cannot take.
    """
    names: dict[str, str] = {}
    messages = list(_system(body.system))
    for index, message in enumerate(body.messages):
        messages += _messages(message, f"messages[{index}]", names)
    continues = _continues(messages)
    if continues:
        messages[-1] = {**messages[-1], "content": str(messages[-1]["content"]).rstrip()}
    if not body.messages:
        raise RequestError("invalid_request", "messages: there must be at least one message", parameter="messages")
    return Conversation(messages, variables=_variables(body), continues=continues)


def tool_use(body: CountTokensBody) -> ToolUse:
    """The tools that the model may call; tools of Anthropic's servers are left out.

    Raises:
        RequestError: ``tool_choice`` wants a tool that is not among ``tools``.
    """
    tools = tuple(_tool(tool) for tool in body.tools or () if tool.input_schema is not None)
    choice = body.tool_choice
    if choice is None:
        return ToolUse(tools)
    if choice.type in ("any", "tool") and not tools:
        raise _invalid("tool_choice", "there is no tool to call", "give tools with an input_schema")
    if choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        raise _invalid("tool_choice.name", f"there is no tool '{choice.name}'", "name one of the tools")
    return ToolUse(
        tools,
        {"auto": "auto", "none": "none"}.get(choice.type, "required"),  # type: ignore[arg-type]
        choice.name if choice.type == "tool" else None,
        parallel=not choice.disable_parallel_tool_use,
    )


def marks_cache(body: CountTokensBody) -> bool:
    """Whether ``body`` has a mark for the prefix cache anywhere, with which clients ask for the usage by parts."""
    contents = [body.system, *(message.content for message in body.messages)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return any(one.cache_control is not None for one in (body, *blocks, *(body.tools or ())))


def _tool(tool: ToolDefinition) -> Tool:
    return Tool(tool.name, tool.description or "", tool.input_schema or {}, bool(tool.strict))


def _max_tokens(given: int | None) -> int:
    """The tokens to ask for: at least one, since even a request that only fills the prefix cache draws a token."""
    if given is None or given < 0:
        return UNLIMITED_TOKENS
    return min(max(given, 1), UNLIMITED_TOKENS)


def _sampling(body: MessagesBody, model: ServedModel) -> SamplingOptions:
    """The given options, else those that the makers of the model recommend, else the API's temperature of 1."""
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    chosen = {"temperature": 1.0, **model.sampling, **{name: one for name, one in given.items() if one is not None}}
    return SamplingOptions(
        temperature=float(chosen["temperature"]),
        top_p=float(chosen.get("top_p", 1.0)),
        top_k=max(0, int(chosen.get("top_k", 0))),
        min_p=float(chosen.get("min_p", 0.0)),
        repetition_penalty=float(chosen.get("repetition_penalty", 1.0)),
    )


def _constraint(body: MessagesBody) -> Constraint | None:
    wanted: OutputFormat | None = body.output_config.format if body.output_config else None
    wanted = wanted or body.output_format
    if wanted is None:
        return None
    if wanted.type != "json_schema" or not isinstance(wanted.schema, dict):
        raise _invalid("output_config.format", "the format must be a json_schema with a schema", "give a JSON schema")
    return Constraint("json_schema", json.dumps(wanted.schema))


def _variables(body: CountTokensBody) -> dict[str, Any]:
    """Variables of the chat template. As in Anthropic's API, a model that can think does so if it is asked to."""
    variables: dict[str, Any] = {"enable_thinking": _thinks(body.thinking)}
    effort = body.output_config.effort if body.output_config else None
    if effort:
        variables["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return variables


def _thinks(thinking: Thinking | None) -> bool:
    return thinking is not None and thinking.type != "disabled"


def _continues(messages: list[Message]) -> bool:
    """Whether the last message is the beginning of the answer; what has only white space is no beginning."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or "tool_calls" in last:
        return False
    if str(last["content"]).strip():
        return True
    messages.pop()
    return False


def _system(system: str | list[Block] | None) -> Iterator[Message]:
    if isinstance(system, str):
        texts = [system]
    else:
        blocks = enumerate(system or ())
        texts = [_text(block, f"system[{index}]") for index, block in blocks]
    kept = [text for text in texts if text and not text.startswith(VOLATILE_HEADER)]
    if kept:
        yield {"role": "system", "content": "\n\n".join(kept)}


def _messages(message: InputMessage, where: str, names: dict[str, str]) -> Iterable[Message]:
    """One message of the API as messages of a chat template; ``names`` are those of the tools that were called."""
    content = message.content
    blocks = [Block("text", text=content or "")] if content is None or isinstance(content, str) else content
    if message.role == "assistant":
        return _assistant(blocks, where, names)
    return _user(message.role, blocks, where, names)


def _user(role: str, blocks: list[Block], where: str, names: dict[str, str]) -> Iterator[Message]:
    """Results of tools as messages of their own, and the texts between them, in the order given."""
    texts: list[str] = []
    for index, block in enumerate(blocks):
        place = f"{where}.content[{index}]"
        if block.type != "tool_result":
            texts.append(_text(block, place))
            continue
        if texts:
            yield {"role": role, "content": "\n".join(texts)}
            texts = []
        yield _tool_result(block, place, names)
    if texts or not blocks:
        yield {"role": role, "content": "\n".join(texts)}


def _tool_result(block: Block, where: str, names: dict[str, str]) -> Message:
    content = _content_text(block.content, where)
    text = f"Error: {content or 'the tool failed'}" if block.is_error else content
    identity = block.tool_use_id or ""
    result = {"role": "tool", "tool_call_id": identity, "content": text}
    return {**result, "name": names[identity]} if identity in names else result


def _assistant(blocks: list[Block], where: str, names: dict[str, str]) -> Iterator[Message]:
    text, reasoning, calls = "", "", []
    for index, block in enumerate(blocks):
        if block.type == "tool_use":
            calls.append(_call(block, f"{where}.content[{index}]", names))
        elif block.type == "thinking":
            reasoning += block.thinking or ""
        elif block.type not in _SERVER_BLOCKS and not block.type.endswith("_tool_result"):
            text += _text(block, f"{where}.content[{index}]")
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    yield message


def _call(block: Block, where: str, names: dict[str, str]) -> dict[str, Any]:
    if not block.name or not isinstance(block.input if block.input is not None else {}, dict):
        raise _invalid(
            where, "a tool_use needs a name, and an object as its input", "send the block as it was answered"
        )
    names[block.id or ""] = block.name
    function = {"name": block.name, "arguments": block.input or {}}
    return {"id": block.id or "", "type": "function", "function": function}


def _text(block: Block, where: str) -> str:
    """The text of a block that has some."""
    source = block.source if isinstance(block.source, dict) else {}
    match block.type:
        case "text":
            return block.text or ""
        case "document" if source.get("type") == "text":
            return "\n".join(part for part in (block.title, str(source.get("data", ""))) if part)
        case "search_result":
            parts = block.content if isinstance(block.content, list) else []
            texts = [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
            return "\n".join([block.title or "", *texts])
        case "compaction":
            return str(block.content or "")
        case "tool_reference":
            return f"The tool {block.tool_name} is available."
        case "tool_addition" | "tool_removal":
            return _tool_change(block)
    raise RequestError(
        "unsupported_content",
        f"{where}: the model takes text, and this is a block of type '{block.type}'",
        "leave the block out, or describe it in text",
        parameter=where,
    )


def _content_text(content: Any, where: str) -> str:
    """The text of a content that is null, a string or blocks."""
    try:
        content = msgspec.convert(content, str | list[Block] | None)
    except msgspec.ValidationError as error:
        raise _invalid(f"{where}.content", str(error), "give a string or content blocks") from error
    if not isinstance(content, list):
        return content or ""
    return "\n".join(_text(part, f"{where}.content[{index}]") for index, part in enumerate(content))


def _tool_change(block: Block) -> str:
    """What the model is told where tools change in mid-conversation: a change of ``tools`` would lose the prefix."""
    tool = block.tool if isinstance(block.tool, dict) else {}
    definition = tool.get("definition")
    if not isinstance(definition, dict):
        definition = {}
    name = definition.get("name", tool.get("name"))
    if block.type == "tool_removal":
        return f"The tool {name} is no longer available."
    shown = {key: definition[key] for key in ("description", "input_schema") if key in definition}
    return f"The tool {name} is available." + (f" {json.dumps(shown)}" if shown else "")


def _invalid(parameter: str, sentence: str, hint: str) -> RequestError:
    return RequestError("invalid_request", f"{parameter}: {sentence}", hint, parameter=parameter)
