"""``POST /api/chat``: a conversation, answered in lines of JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.endpoint import read_body
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationRequest
from edgepp.http_api.model_service import ModelService, ServedModel
from edgepp.http_api.ollama_api.answer import AnyRequest, Question, answered
from edgepp.http_api.ollama_api.ndjson import chat_shape
from edgepp.http_api.ollama_api.options import generate_options, think_variables
from edgepp.model.text.conversation import Conversation, Message
from edgepp.tool_calls.tool_use import Tool, ToolUse

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class CalledFunction(msgspec.Struct):
    """The function of a call, with its arguments as an object, or as the JSON text of one."""

    name: str
    arguments: dict[str, Any] | str | None = None


class ToolCall(msgspec.Struct):
    """A call in an assistant's message."""

    function: CalledFunction
    id: str | None = None


class ChatMessage(msgspec.Struct):
    """One message; the result of a tool names it in ``tool_name``, if at all."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class FunctionTool(msgspec.Struct):
    """A tool: a function."""

    function: Function
    type: str | None = "function"


class ChatRequest(AnyRequest):
    """The body of ``/api/chat``; fields that are not here are ignored."""

    messages: list[ChatMessage] | None = None
    tools: list[FunctionTool] | None = None


async def chat(service: ModelService, request: Request) -> Response:
    """Answer the conversation of a request."""
    body = await read_body(request, ChatRequest)

    async def question(model: ServedModel, name: str) -> Question:
        return Question(generation_request(body, model, name))

    return await answered(service, request, body, chat_shape, question if body.messages else None)


def generation_request(body: ChatRequest, model: ServedModel, name: str) -> GenerationRequest:
    """The request of a body with messages for ``model``, which the client calls ``name``.

    The answer goes on where the last message is an assistant's text, as Ollama's does.

    Raises:
        RequestError: a message, a tool or an option cannot be taken.
    """
    tools = tuple(_tool(tool.function, f"tools[{index}]") for index, tool in enumerate(body.tools or ()))
    messages = conversation_messages(body.messages or ())
    variables = think_variables(model, name, body.think)
    options = generate_options(model, body.options, body.format, body.logprobs, body.top_logprobs)
    last = messages[-1]
    goes_on = last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last
    prompt = Conversation(messages, variables=variables, continues=goes_on)
    return GenerationRequest(prompt, options, model=model.name, tool_use=ToolUse(tools))


def _tool(function: Function, where: str) -> Tool:
    if not function.name:
        raise RequestError("invalid_request", f"{where}.function has no name", parameter=f"{where}.function.name")
    return Tool(function.name, function.description or "", function.parameters or {}, where=where)


def conversation_messages(messages: Iterable[ChatMessage]) -> list[Message]:
    """The messages as a chat template takes them.

    Calls get ids, the same ones in each turn, so that a prompt begins as the one before it did. A result that names
    neither a call nor a tool belongs to the first call without one.

    Raises:
        RequestError: a role is unknown, or a message holds more than text.
    """
    taken: list[Message] = []
    open_calls: list[Message] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = _ROLES.get(message.role.lower())
        if role is None:
            roles = ", ".join(_ROLES)
            raise RequestError(
                "invalid_request",
                f"{where}.role must be one of {roles}, not {message.role!r:.40}",
                parameter=f"{where}.role",
            )
        if message.images:
            raise no_images(f"{where}.images")
        text = _text(message.content, f"{where}.content")
        if role == "assistant":
            calls = [
                _call(call, f"call{len(taken):03}{n:02}", where) for n, call in enumerate(message.tool_calls or ())
            ]
            open_calls = list(calls)
            taken.append(_assistant(text, message.thinking, calls))
        elif role == "tool":
            taken.append(_result(text, message, open_calls))
        else:
            taken.append({"role": role, "content": text})
    return taken


def no_images(parameter: str) -> RequestError:
    """The refusal of an image."""
    return RequestError("unsupported_content", f"this model does not support images ({parameter})", parameter=parameter)


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            message = f"{where}[{index}] is no text, and this model reads text alone"
            raise RequestError("unsupported_content", message, parameter=f"{where}[{index}]")
    return "".join(part["text"] for part in content)


def _call(call: ToolCall, new_id: str, where: str) -> Message:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            message = f"{where}: the arguments of the call of {call.function.name} are no JSON object"
            raise RequestError("invalid_request", message, parameter=where) from error
    function = {"name": call.function.name, "arguments": arguments or {}}
    return {"id": call.id or new_id, "type": "function", "function": function}


def _assistant(text: str, thinking: str | None, calls: list[Message]) -> Message:
    reasoning = {"reasoning_content": thinking} if thinking else {}
    return {"role": "assistant", "content": text, **reasoning, **({"tool_calls": calls} if calls else {})}


def _result(text: str, message: ChatMessage, open_calls: list[Message]) -> Message:
    """The result of the call that the message names, or else of the first open one, which is closed."""
    name, call_id = message.tool_name, message.tool_call_id
    fits = [
        call for call in open_calls if call_id in (None, call["id"]) and name in (None, "", call["function"]["name"])
    ]
    if fits:
        open_calls.remove(fits[0])
        call_id, name = fits[0]["id"], fits[0]["function"]["name"]
    return {"role": "tool", "content": text, "tool_call_id": call_id or "", "name": name or ""}
