"""Shared parts of the endpoints of all APIs: bodies, errors in the API's own form, streams, clients that have gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError, InternalError, UsageError
from edgepp.http_api.body_decoding import decoded
from edgepp.http_api.failures import FailureKind, RequestError, not_allowed
from edgepp.http_api.generation import GenerationEvent, Queued
from edgepp.http_api.iterator_closing import closing

log = logging.getLogger("edgepp.http_api")

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
_IN_BAND = "in_band_error"
_ANSWERS = "answers"
STREAM_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class ErrorForm:
    """The form of an error of an API."""

    status: Callable[[RequestError], int]
    body: Callable[[RequestError, str], Mapping[str, Any]]
    """The JSON object for an error and a request id."""


class ClientGone(Exception):  # noqa: N818 - not an error of anybody
    """The client has closed its connection; nobody reads a response."""


@dataclass(frozen=True)
class _Endpoint:
    """An ASGI application; it is not a function, since Starlette calls functions with a request."""

    handler: Handler
    form: ErrorForm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        async with _answers(request):
            try:
                response = await self.handler(request)
            except (ClientGone, ClientDisconnect):
                return
            except Exception as error:  # noqa: BLE001 - outermost level of a request
                response = error_response(failure(error), self.form, request_id(request))
            await response(scope, receive, send)


def endpoint(handler: Handler, form: ErrorForm) -> ASGIApp:
    """An ASGI application of ``handler``, whose errors become responses in the ``form`` of the API."""
    return _Endpoint(handler, form)


def failure(error: BaseException) -> RequestError:
    """Any error as a ``RequestError``."""
    if isinstance(error, RequestError):
        return error
    known = error if isinstance(error, EdgeppError) else explained(error)
    kind: FailureKind = "invalid_request" if isinstance(known, UsageError) else "internal"
    if isinstance(known, InternalError):
        log.error("a request failed: %s", known)
    parameter = known.parameter if isinstance(known, UsageError) else None
    return RequestError(kind, str(known), known.hint, parameter=parameter)


def error_response(error: RequestError, form: ErrorForm, request: str) -> Response:
    """The response that tells of ``error``."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, round(1000 * error.retry_after_s)))
    return json_response(form.body(error, request), form.status(error), headers)


def request_id(request: Request) -> str:
    """The id of a request, which the outermost middleware has chosen; empty without it."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def owner(request: Request) -> str:
    """The name of the API key that the request came with; empty without one."""
    return str(request.scope.get("state", {}).get("owner", ""))


def may_administer(request: Request) -> bool:
    """Whether the request may change the cluster, as noted by ``access.authentication``; False without a note."""
    return request.scope.get("state", {}).get("administers") is True


def administering(handler: Handler) -> Handler:
    """``handler``, which refuses requests that may not change the cluster."""

    async def checked(request: Request) -> Response:
        if not may_administer(request):
            raise not_allowed()
        return await handler(request)

    return checked


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with ``body`` as JSON: a msgspec struct, or dicts and lists."""
    return Response(msgspec.json.encode(body), status, dict(headers or {}), "application/json")


async def read_body(request: Request, kind: type[T]) -> T:
    """The JSON body of a request as a ``kind``, such as a msgspec struct; unknown fields are ignored.

    Raises:
        RequestError: the body is no JSON, or a field is missing or has the wrong type.
    """
    return decoded(await request.body(), kind)


async def begun(request: Request, events: AsyncIterator[GenerationEvent]) -> AsyncIterator[GenerationEvent]:
    """``events`` from ``Started`` on, once the answer has begun, so that a refusal can have its own HTTP status.

    The answer is closed with the response to ``request`` at the latest, although nobody may have read an event.

    Raises:
        RequestError: the answer cannot begin.
        ClientGone: the client has gone.
    """
    await _answers(request).enter_async_context(closing(events))
    return await unless_gone(request, _from_the_beginning(events))


def _answers(request: Request) -> AsyncExitStack:
    """The answers that are closed when the response to ``request`` has ended, well or not."""
    answers: AsyncExitStack = request.scope.setdefault("state", {}).setdefault(_ANSWERS, AsyncExitStack())
    return answers


async def _from_the_beginning(events: AsyncIterator[GenerationEvent]) -> AsyncIterator[GenerationEvent]:
    async for event in events:
        if not isinstance(event, Queued):
            return _chained(event, events)
    raise RequestError("internal", "the answer ended before it began")


async def _chained(first: GenerationEvent, rest: AsyncIterator[GenerationEvent]) -> AsyncIterator[GenerationEvent]:
    async with closing(rest):
        yield first
        async for event in rest:
            yield event


def in_band_error(scope: Scope, error: RequestError) -> bytes | None:
    """``error`` as the last frame of the stream that answers a request; None if no stream does."""
    encode: Callable[[RequestError], bytes] | None = scope.get("state", {}).get(_IN_BAND)
    return encode(error) if encode is not None else None


def stream_response(
    frames: AsyncIterator[bytes], media_type: str, in_band_error: Callable[[RequestError], bytes]
) -> Response:
    """A response that sends ``frames`` as they come; an error in mid-stream is sent as a last frame.

    Frames that come together belong in one of ``frames``: a write wakes the client, and costs more than its bytes.

    A client that goes away closes ``frames``.
    """
    return _ClosingStream(_with_error(frames, in_band_error), media_type, in_band_error)


class _ClosingStream(StreamingResponse):
    """A response that closes its frames when the client has gone, or the server stops.

    Starlette leaves closing to garbage collection."""

    def __init__(
        self, frames: AsyncGenerator[bytes, None], media_type: str, in_band_error: Callable[[RequestError], bytes]
    ) -> None:
        super().__init__(frames, 200, STREAM_HEADERS, media_type)
        self._frames = frames
        self._in_band_error = in_band_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[_IN_BAND] = self._in_band_error
        async with aclosing(self._frames):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the frames one by one, so that other clients come between, and the end of this one is noticed."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self._frames:
            if frame:  # an event may have nothing to tell
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await asyncio.sleep(0)  # a frame that waits for nothing, sent to nobody, would never let go
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _with_error(
    frames: AsyncIterator[bytes], in_band_error: Callable[[RequestError], bytes]
) -> AsyncGenerator[bytes, None]:
    async with closing(frames):
        try:
            async for frame in frames:
                yield frame
        except Exception as error:  # noqa: BLE001 - outermost level of a stream
            yield in_band_error(failure(error))


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client closes its connection.

    Raises:
        ClientGone: the client has gone.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
