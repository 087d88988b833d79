"""The id of each request, which every response repeats: the client's own where that is short and plain."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepp.http_api.access.request_head import header
from edgepp.structured_log import fields

log = logging.getLogger("edgepp.http_api")
_MAX_PATH = 200

_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
RESPONSE_HEADERS = (b"x-request-id", b"request-id")
"""OpenAI's name, and Anthropic's."""


class RequestIds:
    """The outermost middleware, which sets ``scope["state"]["request_id"]`` and the response headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        given = header(scope, "x-request-id") or ""
        request_id = given if _PLAIN.fullmatch(given) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        told = [(name, request_id.encode()) for name in RESPONSE_HEADERS]

        began_s, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if log.isEnabledFor(logging.INFO):
                path, seconds = str(scope.get("path", ""))[:_MAX_PATH], round(time.perf_counter() - began_s, 6)
                facts = {"method": scope.get("method", ""), "path": path, "status": status, "seconds": seconds}
                log.info("an HTTP request", extra=fields("http_request", request_id, **facts))


def new_request_id() -> str:
    """An id for a request that has none of its own."""
    return f"req_{secrets.token_hex(12)}"
