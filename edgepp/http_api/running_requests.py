"""The requests that run: when the server closes, each ends with an error as its API writes it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepp.http_api.access.refusal import CLOSE, refuse
from edgepp.http_api.endpoint import in_band_error
from edgepp.http_api.failures import RequestError


class RunningRequests:
    """All requests that run now."""

    def __init__(self) -> None:
        self._all: set[_Running] = set()

    def watched(self, app: ASGIApp) -> ASGIApp:
        """``app``, whose requests are known here while they run."""

        async def watching(scope: Scope, receive: Receive, send: Send) -> None:
            running = _Running(scope, receive, send)
            self._all.add(running)
            try:
                await app(scope, receive, running.send)
            finally:
                self._all.discard(running)

        return watching

    async def end_all(self, error: RequestError, within_s: float) -> None:
        """End every response with ``error``, where the client takes it in within ``within_s`` seconds."""
        ends = [asyncio.ensure_future(running.end(error)) for running in self._all]
        if not ends:
            return
        _, late = await asyncio.wait(ends, timeout=within_s)
        for one in late:
            one.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


class _Running:
    """One request, and how much of its response was sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._begun = self._over = self._ended = False

    async def send(self, message: Message) -> None:
        """Send a message of the application, unless the request was ended here."""
        if self._ended:
            return
        self._begun = True
        self._over = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def end(self, error: RequestError) -> None:
        """End the response. What the application sends from now on is dropped."""
        if self._over:
            return
        encoded = in_band_error(self._scope, error)
        if not self._begun:
            self._ended = True
            await refuse(error, self._scope, self._receive, self._send, CLOSE)
        elif encoded is not None:  # another response that has begun is one that the client has yet to read
            self._ended = True
            await self._send({"type": "http.response.body", "body": encoded, "more_body": False})
