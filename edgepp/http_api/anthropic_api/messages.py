"""``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.http_api.anthropic_api.errors import FORM
from edgepp.http_api.anthropic_api.message_body import CountTokensBody, MessagesBody
from edgepp.http_api.anthropic_api.message_events import MessageAccumulator, MessageEvents, frame
from edgepp.http_api.anthropic_api.message_input import conversation, generation_request, marks_cache
from edgepp.http_api.anthropic_api.message_tools import tool_use
from edgepp.http_api.endpoint import begun, json_response, owner, read_body, request_id, stream_response, unless_gone
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationEvent
from edgepp.http_api.iterator_closing import closing
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.operation import Operation
from edgepp.http_api.traced_writes import name_answer


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes of Anthropic's API over ``service``."""

    async def messages(request: Request) -> Response:
        return await _answer(request, service)

    async def count_tokens(request: Request) -> Response:
        return await _count(request, service)

    return [
        Operation("POST", "/v1/messages", messages, FORM, summary="Answer a conversation", body=MessagesBody),
        Operation(
            "POST",
            "/v1/messages/count_tokens",
            count_tokens,
            FORM,
            summary="Count the tokens of a conversation's prompt",
            body=CountTokensBody,
        ),
    ]


async def _answer(request: Request, service: ModelService) -> Response:
    body = await read_body(request, MessagesBody)
    question = generation_request(body, service.served(body.model))
    question = dataclasses.replace(question, owner=owner(request), request_id=request_id(request))
    model = body.model or service.model.name
    encoder = MessageEvents(model, tells_cache=marks_cache(body), has_content=body.max_tokens != 0)
    name_answer(request, encoder.id)
    events = await begun(request, service.generate(question))
    if not body.stream:
        return json_response(await unless_gone(request, _message(encoder, events)))

    def error_frame(error: RequestError) -> bytes:
        return frame(dict(FORM.body(error, request_id(request))))

    return stream_response(_frames(encoder, events), "text/event-stream", error_frame)


async def _count(request: Request, service: ModelService) -> Response:
    body = await read_body(request, CountTokensBody)
    service.served(body.model)
    token_ids = await service.encode(conversation(body), tool_use(body), owner(request))
    return json_response({"input_tokens": len(token_ids)})


async def _frames(encoder: MessageEvents, events: AsyncIterator[GenerationEvent]) -> AsyncIterator[bytes]:
    async with closing(events):
        async for event in events:
            yield b"".join(map(frame, encoder.of(event)))


async def _message(encoder: MessageEvents, events: AsyncIterator[GenerationEvent]) -> dict[str, Any]:
    accumulator = MessageAccumulator()
    async with closing(events):
        async for event in events:
            for encoded in encoder.of(event):
                accumulator.add(encoded)
    return accumulator.message
