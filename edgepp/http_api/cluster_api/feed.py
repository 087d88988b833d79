"""The live view as server-sent events: the whole at once, then what changes, a few times per second at most.

    event: snapshot   the view
    event: change     the members of the view that are new or other than before
    : alive           a comment, where nothing has changed for some seconds

Nothing piles up for a client that reads slowly: what it gets next is made when it has read what came before. A stream
ends after ``STREAM_S``, and the client connects again, so that a key that was revoked does not watch for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.access.request_head import client_host
from edgepp.http_api.cluster_api.view import changed, cluster_view
from edgepp.http_api.endpoint import may_administer, owner, stream_response
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.named_events import named_event

PERIOD_S = 0.25
"""Seconds between two looks at the cluster."""
ALIVE_S = 10.0
"""Longest time in seconds without an event or comment."""
STREAM_S = 300.0
"""Longest life of a stream in seconds."""
MAX_STREAMS = 64
MAX_STREAMS_OF_OWNER = 16
MEDIA_TYPE = "text/event-stream"


class Feed:
    """The streams of all clients over one cluster, which is looked at once for all of them."""

    def __init__(self, service: ModelService) -> None:
        self._service = service
        self._streams: Counter[str] = Counter()
        self._status: Mapping[str, Any] = {}
        self._views: dict[bool, dict[str, Any]] = {}
        """Views of ``_status``, by whether the client administers."""
        self._looked_s = -PERIOD_S

    def view(self, *, administers: bool) -> dict[str, Any]:
        """The view now."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= PERIOD_S / 2:
            self._status, self._looked_s = self._service.status(), now_s
            self._views.clear()
        if administers not in self._views:
            self._views[administers] = cluster_view(self._status, administers=administers)
        return self._views[administers]

    async def respond(self, request: Request) -> Response:
        """The stream for one client.

        Raises:
            RequestError: too many streams are open.
        """
        name = owner(request) or client_host(request.scope)
        if self._streams.total() >= MAX_STREAMS or self._streams[name] >= MAX_STREAMS_OF_OWNER:
            raise RequestError(
                "rate_limited",
                "too many views of the cluster are open",
                "close some, or ask /v1/cluster now and then",
                retry_after_s=10.0,
            )
        return stream_response(self._frames(name, administers=may_administer(request)), MEDIA_TYPE, _error_frame)

    @asynccontextmanager
    async def _counted(self, name: str) -> AsyncIterator[None]:
        self._streams[name] += 1
        try:
            yield
        finally:
            self._streams[name] -= 1
            if not self._streams[name]:
                del self._streams[name]

    async def _frames(self, name: str, *, administers: bool) -> AsyncGenerator[bytes, None]:
        async with self._counted(name):
            began_s = told_s = time.monotonic()
            told = self.view(administers=administers)
            yield named_event("snapshot", told)
            while (now_s := time.monotonic()) - began_s < STREAM_S:
                await asyncio.sleep(PERIOD_S)
                view = self.view(administers=administers)
                if news := changed(told, view):
                    told, told_s = view, now_s
                    yield named_event("change", news)
                elif now_s - told_s >= ALIVE_S:
                    told_s = now_s
                    yield b": alive\n\n"


def _error_frame(error: RequestError) -> bytes:
    return named_event("error", {"message": str(error), "hint": error.hint, "code": error.kind})
