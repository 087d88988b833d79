"""Bodies of refused requests: read and dropped before the response is sent.

Many clients read no response before they have sent all; and a connection that is closed while bytes are unread is
reset, which loses the response.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepp.http_api.access.refusal import CLOSE
from edgepp.http_api.access.request_head import has_body, header
from edgepp.http_api.http_options import Limits

_SKIP_S, _SKIPPED_BODIES = 5.0, 2
_CLOSE_HEADERS = [(name.lower().encode(), value.encode()) for name, value in CLOSE.items()]


class UnreadBodies:
    """Middleware that reads the part of a body that the application has left, within bounds of size and time."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limit_bytes = _SKIPPED_BODIES * limits.body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not has_body(scope):
            return await self._app(scope, receive, send)
        whole = False

        async def noted() -> Message:
            nonlocal whole
            message = await receive()
            whole = not message.get("more_body", False)
            return message

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not whole and not _closes(message):
                waits = header(scope, "expect") is not None  # then the client sends no body
                if waits or not await self._skipped(noted):
                    message = {**message, "headers": [*message.get("headers", ()), *_CLOSE_HEADERS]}
            await send(message)

        return await self._app(scope, noted, send_after_body)

    async def _skipped(self, receive: Receive) -> bool:
        """Whether the connection can go on: the rest has come, or comes so slowly that the connection drops it."""
        num_bytes = 0
        try:
            async with asyncio.timeout(_SKIP_S):
                while num_bytes < self._limit_bytes:
                    message = await receive()
                    if not message.get("more_body", False):
                        return True
                    num_bytes += len(message.get("body", b""))
        except TimeoutError:
            return True
        return False


def _closes(message: Message) -> bool:
    return any(pair in _CLOSE_HEADERS for pair in message.get("headers", ()))
