"""``POST /tokenize`` and ``/detokenize`` in vLLM's form, and the count of a chat's prompt in llama-server's."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.endpoint import Handler, json_response, owner, read_body, unless_gone
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.chat_request import ChatBody, conversation_of
from edgepp.http_api.openai_api.content import ChatMessage
from edgepp.http_api.openai_api.errors import served
from edgepp.http_api.openai_api.tools import ToolBody, ToolChoice, tool_use_of
from edgepp.model.text.conversation import Prompt
from edgepp.tool_calls.tool_use import ToolUse


class TokenizeBody(msgspec.Struct):
    """A text, or a chat, to be made tokens."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct):
    """Token ids to be made text."""

    tokens: list[int]
    model: str | None = None


def tokenize(service: ModelService) -> Handler:
    """The handler of ``/tokenize``."""

    async def handle(request: Request) -> Response:
        body = await read_body(request, TokenizeBody)
        model = served(service, body.model)
        tokens = await unless_gone(request, service.encode(*_prompt(body), owner(request)))
        strings = None
        if body.return_token_strs:
            strings = [await service.decode([token], owner(request)) for token in tokens]
        return json_response(
            {"count": len(tokens), "max_model_len": model.context, "tokens": tokens, "token_strs": strings}
        )

    return handle


def detokenize(service: ModelService) -> Handler:
    """The handler of ``/detokenize``."""

    async def handle(request: Request) -> Response:
        body = await read_body(request, DetokenizeBody)
        served(service, body.model)
        return json_response({"prompt": await unless_gone(request, service.decode(body.tokens, owner(request)))})

    return handle


def input_tokens(service: ModelService) -> Handler:
    """The handler of ``/v1/chat/completions/input_tokens``: the tokens that the same chat completion would read."""

    async def handle(request: Request) -> Response:
        body = await read_body(request, ChatBody)
        served(service, body.model)
        tools = tool_use_of(body.tools, body.tool_choice, body.parallel_tool_calls)
        tokens = await unless_gone(request, service.encode(conversation_of(body), tools, owner(request)))
        return json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})

    return handle


def _prompt(body: TokenizeBody) -> tuple[Prompt, ToolUse | None]:
    if (body.prompt is None) is (body.messages is None):
        raise RequestError("invalid_request", "send either prompt or messages", parameter="prompt")
    if body.prompt is not None:
        return body.prompt, None
    chat = ChatBody(
        messages=body.messages or [],
        chat_template_kwargs=body.chat_template_kwargs,
        continue_final_message=body.continue_final_message,
    )
    return conversation_of(chat), tool_use_of(body.tools, body.tool_choice, None)
