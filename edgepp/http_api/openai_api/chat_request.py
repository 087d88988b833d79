"""The body of a chat completion, decoded into a ``GenerationRequest``."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request

from edgepp.http_api.endpoint import owner, request_id
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationRequest
from edgepp.http_api.model_service import ServedModel
from edgepp.http_api.openai_api.content import ChatMessage, messages_of
from edgepp.http_api.openai_api.sampling import Count, SamplingBody, options_of
from edgepp.http_api.openai_api.tools import ToolBody, ToolChoice, tool_use_of
from edgepp.model.text.conversation import Conversation


class ChatBody(SamplingBody, kw_only=True):
    """The body of a chat completion."""

    messages: list[ChatMessage]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    include_reasoning: bool | None = None
    modalities: list[str] | None = None
    functions: Any = None
    function_call: Any = None


def generation_request(body: ChatBody, model: ServedModel, request: Request) -> GenerationRequest:
    """The question of a chat completion.

    Raises:
        RequestError: the body asks for a feature that is not supported.
        UsageError: an option is out of range.
    """
    _refuse(body)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return GenerationRequest(
        prompt=conversation_of(body),
        options=options_of(body, model, asked, _logprobs(body)),
        model=body.model or "",
        num_choices=body.n or 1,
        tool_use=tool_use_of(body.tools, body.tool_choice, body.parallel_tool_calls),
        owner=owner(request),
        request_id=request_id(request),
    )


def conversation_of(body: ChatBody) -> Conversation:
    """The messages and the variables of the template.

    Raises:
        RequestError: a message cannot be given to the model, or the last one cannot be continued.
    """
    messages = messages_of(body.messages)
    if body.continue_final_message and messages[-1]["role"] != "assistant":
        raise RequestError(
            "invalid_request",
            "continue_final_message needs an assistant's message at the end of messages",
            parameter="continue_final_message",
        )
    return Conversation(
        messages, variables=body.chat_template_kwargs or {}, continues=body.continue_final_message is True
    )


def _logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise RequestError(
            "invalid_request", "top_logprobs needs logprobs", "send logprobs: true", parameter="top_logprobs"
        )
    return None


def _refuse(body: ChatBody) -> None:
    for name in ("functions", "function_call"):
        if getattr(body, name):
            raise RequestError(
                "invalid_request",
                f"{name}: the old form of function calls is not supported",
                "use tools and tool_choice",
                parameter=name,
            )
    for modality in body.modalities or ():
        if modality != "text":
            raise RequestError(
                "unsupported_content",
                f"modalities names {modality:.40}, and this model answers in text only",
                'send ["text"]',
                parameter="modalities",
            )
