"""The response to a question: its lines as they come, or one object."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.endpoint import begun, json_response, owner, request_id, stream_response, unless_gone
from edgepp.http_api.generation import IDLE_S, GenerationEvent, GenerationRequest
from edgepp.http_api.iterator_closing import closing
from edgepp.http_api.model_service import ModelService, ServedModel
from edgepp.http_api.ollama_api.errors import in_band
from edgepp.http_api.ollama_api.models import named
from edgepp.http_api.ollama_api.ndjson import MEDIA_TYPE, LineDelta, Lines, Shape, joined, line
from edgepp.http_api.ollama_api.options import Format, KeepAlive, Think, is_zero

Extra: TypeAlias = Callable[[Sequence[int]], Awaitable[Mapping[str, Any]]]
"""Further fields of the last line, from the tokens of the answer."""


class AnyRequest(msgspec.Struct, kw_only=True):
    """The fields that the bodies of ``/api/chat`` and ``/api/generate`` share."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    format: Format | None = None
    options: dict[str, Any] | None = None
    think: Think | None = None
    keep_alive: KeepAlive | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


async def _nothing(_tokens: Sequence[int]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Question:
    """The question of a body."""

    asked: GenerationRequest
    extra: Extra = _nothing


Asking: TypeAlias = Callable[[ServedModel, str], Awaitable[Question]]
"""The question of a body for the served model, which the client calls by a name."""


async def answered(
    service: ModelService, request: Request, body: AnyRequest, shape: Shape, asking: Asking | None
) -> Response:
    """The response to ``body``, streamed unless its ``stream`` is false.

    A body that asks nothing, for which ``asking`` is None, is to load or unload the model, and is acknowledged.
    """
    wanted = body.model or body.name
    model = named(service, wanted)
    lines = Lines(wanted or model.name, shape, time.time)
    unload = is_zero(body.keep_alive)
    if asking is None:
        return json_response(lines.idle("unload" if unload else "load"))
    question = await asking(model, lines.model)
    asked = replace(question.asked, owner=owner(request), request_id=request_id(request))
    events = await begun(request, service.generate(asked))
    if body.stream is False:
        return json_response(await unless_gone(request, _whole(events, lines, question.extra)))
    return stream_response(streamed(events, lines, question.extra, time.monotonic), MEDIA_TYPE, in_band)


async def streamed(
    events: AsyncIterator[GenerationEvent], lines: Lines, extra: Extra, clock_s: Callable[[], float]
) -> AsyncIterator[bytes]:
    """The lines of an answer, at least one in ``IDLE_S`` seconds while events come."""
    sent_s = clock_s()
    async with closing(events):
        async for event in events:
            delta = lines.take(event)
            if delta is None and clock_s() - sent_s < IDLE_S:
                continue
            sent_s = clock_s()
            yield lines.more(delta or LineDelta())
        yield line(lines.last(extra=await extra(lines.token_ids)))


async def _whole(events: AsyncIterator[GenerationEvent], lines: Lines, extra: Extra) -> Mapping[str, Any]:
    async with closing(events):
        whole = joined([delta async for event in events if (delta := lines.take(event)) is not None])
    return lines.last(whole, await extra(lines.token_ids))
