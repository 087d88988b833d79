"""``/v1/responses``: answers as typed items and events. Nothing is stored: a request brings its whole conversation."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.http_api.endpoint import (
    STREAM_HEADERS,
    Handler,
    begun,
    json_response,
    owner,
    read_body,
    request_id,
    stream_response,
    unless_gone,
)
from edgepp.http_api.failures import FailureKind, RequestError
from edgepp.http_api.generation import GenerationEvent, GenerationRequest
from edgepp.http_api.iterator_closing import closing
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.errors import error_form, served
from edgepp.http_api.openai_api.response_body import (
    Reasoning,
    ResponsesBody,
    all_tools,
    check_stateless,
    echo,
    response_format,
)
from edgepp.http_api.openai_api.response_events import ResponseEncoder, ResponseHead, frame
from edgepp.http_api.openai_api.response_input import decoded_messages
from edgepp.http_api.openai_api.response_tools import Tools, decoded_tools
from edgepp.http_api.openai_api.sampling import constraint_of, options_of
from edgepp.http_api.operation import Operation
from edgepp.http_api.traced_writes import name_answer
from edgepp.model.text.conversation import Conversation

_IN_BAND: tuple[FailureKind, ...] = ("context_length_exceeded", "rate_limited")
"""Refusals that a stream tells by ``response.failed``: Codex compacts or waits then, and gives up at a status."""
_ABSENT = "Not offered: no response is stored"


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes over ``service``."""
    form, responses = error_form(service), _Responses(service)
    table: list[tuple[str, str, Handler, str, Any]] = [
        ("POST", "/v1/responses", responses.create, "Answer as items", ResponsesBody),
        ("POST", "/v1/responses/input_tokens", responses.count, "Count the tokens of a prompt", ResponsesBody),
        ("POST", "/v1/responses/compact", _no_compaction, "Not offered: compaction", None),
        ("GET", "/v1/responses/{response_id}", _not_stored, _ABSENT, None),
        ("DELETE", "/v1/responses/{response_id}", _not_stored, _ABSENT, None),
        ("POST", "/v1/responses/{response_id}/cancel", _not_stored, _ABSENT, None),
        ("GET", "/v1/responses/{response_id}/input_items", _not_stored, _ABSENT, None),
    ]
    return [
        Operation(method, path, handler, form, summary=summary, body=body)
        for method, path, handler, summary, body in table
    ]


@dataclass(frozen=True)
class _Question:
    """A decoded body."""

    request: GenerationRequest
    head: ResponseHead


class _Responses:
    """The handlers."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        """Answer, whole or as a stream."""
        body = await read_body(request, ResponsesBody)
        question = self._question(body, request)
        name_answer(request, question.head.id)
        events = self._service.generate(question.request)
        encoder = ResponseEncoder(question.head)
        if not body.stream:
            await unless_gone(request, _encode_all(events, encoder))
            return json_response(encoder.response)
        try:
            events = await begun(request, events)
        except RequestError as error:
            if error.kind not in _IN_BAND:
                raise
            told = [*encoder.began(), *encoder.failed(error)]
            return Response(b"".join(map(frame, told)), 200, STREAM_HEADERS, "text/event-stream")

        def failed(error: RequestError) -> bytes:
            return b"" if encoder.over else b"".join(map(frame, encoder.failed(error)))

        return stream_response(_frames(events, encoder), "text/event-stream", failed)

    async def count(self, request: Request) -> Response:
        """Count the tokens of the prompt that ``create`` would make of the same body."""
        body = await read_body(request, ResponsesBody)
        served(self._service, body.model)
        prompt, tools = _prompt(body)
        token_ids = await unless_gone(request, self._service.encode(prompt, tools.use, owner(request)))
        return json_response({"object": "response.input_tokens", "input_tokens": len(token_ids)})

    def _question(self, body: ResponsesBody, request: Request) -> _Question:
        model = served(self._service, body.model)
        prompt, tools = _prompt(body)
        logprobs = (body.top_logprobs or 0) if _wants_logprobs(body) else None
        options = options_of(body, model, body.max_output_tokens, logprobs)
        options = dataclasses.replace(options, constraint=constraint_of(response_format(body.text)))
        asked = GenerationRequest(
            prompt, options, model.name, tool_use=tools.use, owner=owner(request), request_id=request_id(request)
        )
        head = ResponseHead(
            id=f"resp_{secrets.token_hex(16)}",
            created_s=int(time.time()),
            model=model.name,
            echo=echo(body, options.sampling),
            tools=tools.declared,
            summarises=body.reasoning is not None and body.reasoning.summary is not None,
        )
        return _Question(asked, head)


def _prompt(body: ResponsesBody) -> tuple[Conversation, Tools]:
    check_stateless(body)
    tools = decoded_tools(all_tools(body), body.tool_choice, body.parallel_tool_calls is not False)
    return Conversation(decoded_messages(body), variables=_variables(body.reasoning)), tools


def _variables(reasoning: Reasoning | None) -> dict[str, Any]:
    """Variables of chat templates that stand for the wanted effort of a model that thinks."""
    if reasoning is None or reasoning.effort is None:
        return {}
    return {"reasoning_effort": reasoning.effort, "enable_thinking": reasoning.effort != "none"}


def _wants_logprobs(body: ResponsesBody) -> bool:
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


async def _encode_all(events: AsyncIterator[GenerationEvent], encoder: ResponseEncoder) -> None:
    async with closing(events):
        async for event in events:
            encoder.encode(event)
    if not encoder.over:
        raise RequestError("internal", "the answer ended early")


async def _frames(events: AsyncIterator[GenerationEvent], encoder: ResponseEncoder) -> AsyncIterator[bytes]:
    async with closing(events):
        yield b"".join(map(frame, encoder.began()))
        async for event in events:
            yield b"".join(map(frame, encoder.encode(event)))
        if not encoder.over:
            raise RequestError("internal", "the answer ended early")


async def _not_stored(request: Request) -> Response:
    response_id = str(request.path_params["response_id"])
    raise RequestError(
        "not_found",
        f"there is no response '{response_id:.80}': this server stores no responses",
        "send the whole conversation in the input of each request",
        parameter="response_id",
    )


async def _no_compaction(_: Request) -> Response:
    raise RequestError(
        "not_implemented",
        "this server compacts no conversations",
        "ask the model itself for a summary, as clients do for providers other than OpenAI",
    )
