"""The response to a question: its lines as they come, or one object."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.endpoint import begun, json_response, owner, request_id, stream_response, unless_gone
from edgepp.http_api.generation import IDLE_S, GenerationEvent, GenerationRequest
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.ollama_api.errors import in_band
from edgepp.http_api.ollama_api.ndjson import MEDIA_TYPE, Lines, Piece, joined, line

Extra: TypeAlias = Callable[[Piece], Awaitable[Mapping[str, Any]]]
"""Further fields of the last line, from the whole answer."""


async def _nothing(_whole: Piece) -> Mapping[str, Any]:
    return {}


async def answered(
    service: ModelService,
    request: Request,
    asked: GenerationRequest,
    lines: Lines,
    stream: bool | None,
    extra: Extra = _nothing,
) -> Response:
    """The response to ``asked``, streamed unless ``stream`` is false."""
    asked = replace(asked, owner=owner(request), request_id=request_id(request))
    events = await unless_gone(request, begun(service.generate(asked)))
    if stream is False:
        return json_response(await unless_gone(request, _whole(events, lines, extra)))
    return stream_response(streamed(events, lines, extra, time.monotonic), MEDIA_TYPE, in_band)


async def streamed(
    events: AsyncIterator[GenerationEvent], lines: Lines, extra: Extra, clock_s: Callable[[], float]
) -> AsyncIterator[bytes]:
    """The lines of an answer, at least one in ``IDLE_S`` seconds while events come."""
    pieces: list[Piece] = []
    sent_s = clock_s()
    try:
        async for event in events:
            piece = lines.take(event)
            if piece is None and clock_s() - sent_s < IDLE_S:
                continue
            pieces.append(piece or Piece())
            sent_s = clock_s()
            yield lines.more(pieces[-1])
        yield line(lines.last(extra=await extra(joined(pieces))))
    finally:
        await _close(events)


async def _whole(events: AsyncIterator[GenerationEvent], lines: Lines, extra: Extra) -> Mapping[str, Any]:
    try:
        whole = joined([piece async for event in events if (piece := lines.take(event)) is not None])
    finally:
        await _close(events)
    return lines.last(whole, await extra(whole))


async def _close(events: AsyncIterator[GenerationEvent]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
