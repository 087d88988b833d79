"""Anthropic's messages as a ``GenerationRequest``: system prompt, content blocks, tools and options.

Every message keeps its place, so that the next turn of a conversation begins with all of this turn. ``cache_control``
only decides how the usage is told.
"""

from __future__ import annotations

from typing import Any

from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
from edgepp.http_api.anthropic_api.errors import invalid
from edgepp.http_api.anthropic_api.message_body import (
    CountTokensBody,
    MessagesBody,
    OutputFormat,
    Thinking,
)
from edgepp.http_api.anthropic_api.message_reader import MessageReader
from edgepp.http_api.anthropic_api.message_tools import tool_use, unlisted
from edgepp.http_api.generation import GenerationRequest
from edgepp.http_api.model_service import ServedModel
from edgepp.model.text.conversation import Conversation, Message
from edgepp.tool_calls.schemas import answer_constraint

UNLIMITED_TOKENS = 1 << 30
_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that no chat template knows, as the nearest that templates know."""


def generation_request(body: MessagesBody, model: ServedModel) -> GenerationRequest:
    """The question of ``body``.

    Raises:
        RequestError: a message, a tool or an option is not supported; the sentence names it.
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
    reader = MessageReader(unlisted(body))
    messages = list(reader.system(body.system))
    for index, message in enumerate(body.messages):
        messages += reader.messages(message, f"messages[{index}]")
    continues = _continues(messages)
    if continues:
        messages[-1] = {**messages[-1], "content": str(messages[-1]["content"]).rstrip()}
    if not body.messages:
        raise invalid("messages", "there must be at least one message", "send what the model is to answer")
    return Conversation(messages, variables=_variables(body), continues=continues)


def marks_cache(body: CountTokensBody) -> bool:
    """Whether ``body`` has a mark for the prefix cache anywhere, with which clients ask for the usage by parts."""
    contents = [body.system, *(message.content for message in body.messages)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return any(one.cache_control is not None for one in (body, *blocks, *(body.tools or ())))


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
        raise invalid("output_config.format", "the format must be a json_schema with a schema", "give a JSON schema")
    return answer_constraint(wanted.schema, strict=True)


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
    """Whether the last message is the beginning of the answer; a message of white space alone is not."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or "tool_calls" in last:
        return False
    if str(last["content"]).strip():
        return True
    messages.pop()
    return False
