"""A client that sends bytes as they are, to see what a server does with clients of every kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgepp.http_api.http_options import HttpOptions, Limits
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.server import HttpServer
from tests.builders.scripted_service import ScriptedService, answer
from tests.waiting import PATIENCE_S

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def served(service: ModelService, limits: Limits | None = None) -> AsyncIterator[HttpServer]:
    """A server on loopback."""
    async with HttpServer(service, HttpOptions("127.0.0.1:0"), limits) as server:
        yield server


@dataclass(frozen=True)
class Response:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | str) -> None:
        """Send bytes; bytes that do not fit are kept, and the reader meets errors."""
        self.writer.write(data.encode() if isinstance(data, str) else data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def ask(self, method: str, path: str, body: bytes = b"", *headers: str) -> Response:
        """The response to a request."""
        await self.send(request(method, path, body, *headers))
        return await self.response(has_body=method != "HEAD")

    async def response(self, *, has_body: bool = True) -> Response:
        """The next response."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            status = int(head[0].split()[1])
            return Response(status, headers, await self._body(headers) if has_body and status >= 200 else b"")

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", 0)))
        found = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            found += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return found

    async def until(self, text: bytes) -> bytes:
        """The bytes that come up to ``text``, and ``text``."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(text)

    async def rest(self) -> bytes:
        """The bytes that come until the server closes the connection."""
        found = b""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while piece := await self.reader.read(1 << 16):
                    found += piece
        return found


Act: TypeAlias = Callable[[HttpServer, RawClient], Awaitable[None]]
"""Acts of a test on a server, by a connection to it."""


@asynccontextmanager
async def connected(server: HttpServer, num_unread_bytes: int = 1 << 16) -> AsyncIterator[RawClient]:
    """A connection to ``server``, of a client that takes in ``num_unread_bytes`` before anybody reads them."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=num_unread_bytes)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """The bytes of a request, with a JSON body unless it is empty."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join((*lines, "", "")).encode() + body


def question(*, stream: bool) -> bytes:
    """The body of a chat completion."""
    return json.dumps({"messages": [{"role": "user", "content": "Hello"}], "stream": stream}).encode()


async def eventually(what: str, look: Any) -> None:
    """Wait until ``look`` returns a truth; ``what`` is for the reader of a failure."""
    assert what
    async with asyncio.timeout(PATIENCE_S):
        while not look():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


def act_on_server(act: Act, limits: Limits | None = None) -> None:
    """Run ``act`` with a server and a connection to it; afterwards nothing of the server is left."""

    async def all_of_it() -> None:
        async with served(ScriptedService([answer("Hel", "lo")]), limits) as server, connected(server) as client:
            await act(server, client)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(all_of_it())


async def still_serves(server: HttpServer) -> None:
    """Check that a server answers another connection.

    Short limits may end a connection of a busy machine before its request has come; not every one.
    """
    for _ in range(50):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async with connected(server) as another:
                assert (await another.ask("GET", "/v1/models")).status == 200
                return
    raise AssertionError("the server answers no more")
