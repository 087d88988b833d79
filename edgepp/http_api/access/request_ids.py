"""The id of each request: the client's own where it is short and plain, told back in every response."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepp.http_api.access.request_head import header

_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
RESPONSE_HEADERS = (b"x-request-id", b"request-id")
"""OpenAI's name, and Anthropic's."""


class RequestIds:
    """Sets ``scope["state"]["request_id"]`` and the response headers; the outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        given = header(scope, "x-request-id") or ""
        request_id = given if _PLAIN.fullmatch(given) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        told = [(name, request_id.encode()) for name in RESPONSE_HEADERS]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        await self._app(scope, receive, send_with_id)


def new_request_id() -> str:
    """An id for a request that has none of its own."""
    return f"req_{secrets.token_hex(12)}"
