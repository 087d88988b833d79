"""The number of requests at a time under one API key, or of one address without keys."""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.access.request_head import METHODS_WITH_BODY, client_host
from edgepp.http_api.failures import RequestError

_RETRY_S = 1.0


class FairUse:
    """Middleware that refuses requests beyond the limit with 429, and says when to try again."""

    def __init__(self, app: ASGIApp, num_requests: int) -> None:
        self._app = app
        self._num_requests = num_requests
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in METHODS_WITH_BODY:
            return await self._app(scope, receive, send)
        name = scope["state"].get("owner") or client_host(scope)
        if self._running[name] >= self._num_requests:
            error = RequestError(
                "rate_limited",
                f"{self._num_requests} requests are running already under this key or address",
                "wait until some have ended",
                retry_after_s=_RETRY_S,
            )
            return await refuse(error, scope, receive, send)
        self._running[name] += 1
        try:
            return await self._app(scope, receive, send)
        finally:
            self._running[name] -= 1
            if not self._running[name]:
                del self._running[name]
