"""Bodies of the Responses API: the fields that are read, those that are refused, and those that a response repeats."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgepp.engine.request import SamplingOptions
from edgepp.http_api.body_decoding import converted
from edgepp.http_api.failures import RequestError
from edgepp.http_api.openai_api.content import Content
from edgepp.http_api.openai_api.response_tools import Choice, ToolSpec, echoed, echoed_tool
from edgepp.http_api.openai_api.sampling import Count, ResponseFormat, SamplingBody, SchemaBody


class Item(msgspec.Struct, kw_only=True):
    """One item of ``input``. Which fields matter depends on ``type``; an item with a ``role`` alone is a message."""

    type: str | None = None
    role: str | None = None
    content: Content = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: Any = None
    """Arguments of a ``function_call``: the text of a JSON object."""
    input: str | None = None
    """Input of a ``custom_tool_call``."""
    output: Any = None
    """The result of a call: text or parts."""
    tools: Any = None
    """Tools of ``additional_tools``."""
    author: str | None = None
    """Author of an ``agent_message``, by which Codex's agents talk to each other."""


class TextFormat(msgspec.Struct, kw_only=True):
    """Form that the text of the answer must have; the schema may also be nested as in Chat Completions."""

    type: str = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    json_schema: SchemaBody | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    """Options of the answer's text; ``verbosity`` is ignored."""

    format: TextFormat | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """Options of a model that thinks."""

    effort: str | None = None
    summary: str | None = None


class ResponsesBody(SamplingBody, kw_only=True):
    """The body of ``/responses`` and of ``/responses/input_tokens``; unknown fields are ignored."""

    input: str | list[Item] | None = None
    instructions: str | list[Item] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Count | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, Any] | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None


def check_stateless(body: ResponsesBody) -> None:
    """Refuse a body that needs an earlier response: no response is stored.

    Raises:
        RequestError: the body refers to something stored.
    """
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name):
            raise RequestError(
                "invalid_request",
                f"{name}: this server stores no responses, conversations or prompts",
                "send the whole conversation in input",
                parameter=name,
            )
    if body.background:
        raise RequestError(
            "invalid_request",
            "background: this server stores no responses to ask for later",
            "leave out background, and use stream",
            parameter="background",
        )


def response_format(text: TextConfig | None) -> ResponseFormat | None:
    """The form of the text as Chat Completions names it.

    Raises:
        RequestError: there is no such form.
    """
    form = text.format if text is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return ResponseFormat("json_object")
    if form.type == "json_schema":
        schema = form.json_schema.schema if form.json_schema is not None else form.schema
        if schema is None:
            raise _invalid("text.format of type json_schema needs a schema", "text.format.schema")
        strict = form.json_schema.strict if form.json_schema is not None else form.strict
        return ResponseFormat("json_schema", SchemaBody(schema, strict), schema)
    raise _invalid(f"there is no text.format of type '{form.type:.40}'", "text.format.type")


def all_tools(body: ResponsesBody) -> list[ToolSpec]:
    """The tools of a body and those that its input adds.

    Raises:
        RequestError: the input adds what is no tool.
    """
    items = body.input if isinstance(body.input, list) else []
    added = [
        tool
        for index, item in enumerate(items)
        if item.type == "additional_tools"
        for tool in _added_tools(item, f"input[{index}].tools")
    ]
    return [*(body.tools or []), *added]


def _added_tools(item: Item, where: str) -> list[ToolSpec]:
    tools: list[ToolSpec] = converted(item.tools or [], list[ToolSpec], where)
    return tools


def echo(body: ResponsesBody, sampling: SamplingOptions) -> dict[str, Any]:
    """The fields of the request that a response repeats."""
    reasoning = body.reasoning or Reasoning()
    choice = body.tool_choice
    return {
        "background": False,
        "instructions": body.instructions if isinstance(body.instructions, str) else None,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "temperature": sampling.temperature,
        "text": {"format": _echoed_format(body.text)},
        "tool_choice": choice if isinstance(choice, str) else echoed(choice) if choice else "auto",
        "tools": [echoed_tool(tool) for tool in body.tools or []],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
    }


def _echoed_format(text: TextConfig | None) -> dict[str, Any]:
    form = text.format if text is not None else None
    told: dict[str, Any] = {"type": form.type if form is not None else "text"}
    if form is not None and form.type == "json_schema":
        nested = form.json_schema
        told |= {"name": form.name or "answer", "schema": nested.schema if nested else form.schema}
    return told


def _invalid(message: str, parameter: str) -> RequestError:
    return RequestError("invalid_request", message, parameter=parameter)
