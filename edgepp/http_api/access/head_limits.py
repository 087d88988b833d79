"""Limits of a complete head of a request; ``connection`` limits a head that is still incomplete."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.failures import RequestError
from edgepp.http_api.http_options import Limits


class HeadLimits:
    """Middleware that refuses requests with too many headers, or too large a head."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        excess = self._excess(scope)
        if excess:
            return await refuse(RequestError("invalid_request", excess), scope, receive, send)
        return await self._app(scope, receive, send)

    def _excess(self, scope: Scope) -> str:
        headers, limits = scope["headers"], self._limits
        if len(headers) > limits.num_headers:
            return f"the request has more than {limits.num_headers} headers"
        num_bytes = len(scope["path"]) + len(scope.get("query_string", b"")) + sum(len(n) + len(v) for n, v in headers)
        return f"the head is larger than {limits.head_bytes >> 10} KiB" if num_bytes > limits.head_bytes else ""
