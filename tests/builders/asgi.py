"""Requests to an ASGI application without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = Iterable[tuple[str, str]]
LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Answered:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def scope(method: str = "GET", path: str = "/", headers: Headers = (), client: str = LOCAL) -> Scope:
    """The scope of a request from ``client``, to localhost unless ``headers`` name another host."""
    given = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    if not any(name == b"host" for name, _ in given):
        given.append((b"host", b"localhost:11434"))
    return {"type": "http", "method": method, "path": path, "headers": given, "client": (client, 50000), "state": {}}


async def call(app: ASGIApp, asked: Scope, *pieces: bytes, gone: bool = False, stays: bool = False) -> Answered | None:
    """The response to a request with a body of ``pieces``; None without one.

    With ``gone`` the client closes its connection after the pieces, in the middle of the body;
    with ``stays`` it keeps its connection open, else it closes the connection after the body.
    """
    more = [True] * len(pieces) if gone else [True] * (len(pieces) - 1) + [False]
    waiting: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": is_more}
        for piece, is_more in zip(pieces or (b"",), more or [gone], strict=True)
    ]
    waiting.append({"type": "http.disconnect"})
    sent: list[Message] = []

    async def receive() -> Message:
        if stays and len(waiting) == 1:
            await asyncio.Event().wait()
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    async def send(message: Message) -> None:
        sent.append(message)

    await app(asked, receive, send)
    return _answered(sent) if sent else None


def _answered(sent: Sequence[Message]) -> Answered:
    start, *rest = sent
    headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Answered(start["status"], headers, b"".join(message.get("body", b"") for message in rest))


class Echo:
    """An application that answers with the request's body, and keeps the scopes that it has seen."""

    def __init__(self) -> None:
        self.seen: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, asked: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.seen.append(asked)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
