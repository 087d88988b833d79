"""Messages of OpenAI's APIs as a ``Conversation``: roles, content as text or parts, and calls in the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from edgepp.http_api.failures import RequestError
from edgepp.model.text.conversation import Message

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ContentPart(msgspec.Struct):
    """One part of a message: text, or content that only other models read, such as an image."""

    type: str = "text"
    text: str | None = None
    refusal: str | None = None


Content: TypeAlias = str | list[str | ContentPart] | None


class CalledFunction(msgspec.Struct):
    """The function of a call in a message of the history."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct):
    """One call of a message of the history."""

    function: CalledFunction
    id: str | None = None


class ChatMessage(msgspec.Struct):
    """One message of a chat."""

    role: Role
    content: Content = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    function_call: Any = None


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as a chat template takes them, in the order that they came.

    Raises:
        RequestError: a part is no text, or a call's arguments are no JSON object.
    """
    if not messages:
        raise RequestError("invalid_request", "messages is empty", "send at least one message", parameter="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def text_of(content: Content, where: str) -> str:
    """The text of a content, whose parts are lines; ``where`` names the content for errors.

    Raises:
        RequestError: a part is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    kept = [(number, part) for number, part in enumerate(content) if not _is_thought(part)]
    return "\n".join(_part(part, f"{where}[{number}]") for number, part in kept)


def call_arguments(text: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The arguments of an earlier call as an object, since templates encode them themselves.

    A text that is no JSON object is kept whole under one name: a client tells the model of its broken call and repeats
    the call in each later request, which must not fail for it.
    """
    if isinstance(text, Mapping):
        return text
    if text is None or not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return {"arguments": text}


def _message(message: ChatMessage, where: str) -> Message:
    if message.role == "function" or message.function_call is not None:
        name = "role" if message.role == "function" else "function_call"
        raise RequestError(
            "invalid_request",
            f"{where}.{name}: the old form of function calls is not supported",
            "use tool_calls and the role tool",
            parameter=f"{where}.{name}",
        )
    text = text_of(message.content, f"{where}.content")
    match message.role:
        case "assistant":
            return _assistant(message, text)
        case "tool":
            ids = {"tool_call_id": message.tool_call_id, "name": message.name}
            return {"role": "tool", "content": text} | {name: value for name, value in ids.items() if value}
        case "developer":
            return {"role": "system", "content": text}
        case _:
            return {"role": message.role, "content": text}


def _assistant(message: ChatMessage, text: str) -> Message:
    told: dict[str, Any] = {"role": "assistant", "content": text}
    if message.reasoning_content:
        told["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        told["content"] = text or None
        told["tool_calls"] = [_call(call) for call in message.tool_calls]
    return told


def _call(call: ToolCall) -> dict[str, Any]:
    function = {
        "name": call.function.name,
        "arguments": call_arguments(call.function.arguments),
    }
    return {"id": call.id or "", "type": "function", "function": function}


def _is_thought(part: str | ContentPart) -> bool:
    """Whether ``part`` is reasoning of an earlier answer, which models do not read again."""
    return isinstance(part, ContentPart) and part.type in ("thinking", "redacted_thinking", "reasoning")


def _part(part: str | ContentPart, where: str) -> str:
    if isinstance(part, str):
        return part
    if part.type not in ("text", "input_text", "output_text", "refusal"):
        raise RequestError(
            "unsupported_content",
            f"{where} is of type {part.type:.40}, and this model reads text only",
            "send text parts only",
            parameter=where,
        )
    text = part.refusal if part.type == "refusal" else part.text
    if text is None:
        raise RequestError("invalid_request", f"{where} has no text", parameter=where)
    return text
