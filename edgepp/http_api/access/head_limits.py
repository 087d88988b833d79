"""The number of headers of a request; the connection bounds their size."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.failures import RequestError


class HeadLimits:
    """Refuses requests with too many headers."""

    def __init__(self, app: ASGIApp, num_headers: int) -> None:
        self._app = app
        self._num_headers = num_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if len(scope["headers"]) > self._num_headers:
            error = RequestError("invalid_request", f"the request has more than {self._num_headers} headers")
            return await refuse(error, scope, receive, send)
        return await self._app(scope, receive, send)
