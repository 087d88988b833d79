"""Clients that go away, do not read, or are many; and a server that is closed under them."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import psutil
import pytest

from edgepp.http_api.connection import HttpConnection
from edgepp.http_api.generation import Started, TextDelta
from edgepp.http_api.http_options import Limits
from edgepp.http_api.server import HttpServer
from tests.builders.raw_http import CHAT, RawClient, connected, eventually, question, request, served
from tests.builders.scripted_service import ScriptedService, Step, answer

PATHS = (CHAT, "/v1/messages", "/api/chat", "/v1/completions", "/v1/responses")
PIECE_BYTES = 16 << 10
MANY = 64


def script(*steps: Step) -> list[Step]:
    return [Started(3), *steps]


def body(path: str, *, stream: bool) -> bytes:
    asked = {
        "/v1/completions": {"prompt": "x"},
        "/v1/responses": {"input": "x"},
    }.get(path, {"messages": [{"role": "user", "content": "x"}]})
    return json.dumps({**asked, "stream": stream, "max_tokens": 10}).encode()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("goes", ["closes", "resets", "half-closes"])
def test_an_answer_ends_when_its_client_goes(path: str, goes: str, stream: bool) -> None:
    async def act() -> None:
        never = asyncio.Event()
        service = ScriptedService([script(TextDelta(0, "begun"), never)])
        async with served(service) as server, connected(server) as client:
            await client.send(request("POST", path, body(path, stream=stream)))
            await eventually("the answer has begun", lambda: service.played and service.played[0].sent == 2)
            if stream:
                assert b"begun" in await client.until(b"begun")
            if goes == "half-closes":
                client.writer.write_eof()
            elif goes == "closes":
                client.writer.close()
            else:
                client.writer.transport.abort()
            await eventually("the answer was cancelled", lambda: service.played[0].closed)
            assert service.played[0].cancelled
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(act())


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_ends_when_a_client_goes_that_has_asked_more_already(stream: bool) -> None:
    """A client may send further requests before the answer; the server still sees the client go."""

    async def act() -> None:
        never = asyncio.Event()
        service = ScriptedService([answer("first"), script(TextDelta(0, "begun"), never)])
        asked = request("POST", CHAT, question(stream=stream))
        async with served(service) as server, connected(server) as client:
            await client.send(2 * asked)
            await eventually("the second answer has begun", lambda: [one.sent for one in service.played][1:] == [2])
            await client.send(2 * asked)
            client.writer.close()
            await eventually("the answer was cancelled", lambda: service.played[1].closed)
            assert service.played[1].cancelled
            assert len(service.played) == 2
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(act())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_that_has_not_begun_ends_when_its_client_goes(path: str, stream: bool) -> None:
    async def act() -> None:
        never = asyncio.Event()
        service = ScriptedService([[never]])
        async with served(service) as server, connected(server) as client:
            await client.send(request("POST", path, body(path, stream=stream)))
            await eventually("the request is there", lambda: service.played)
            client.writer.close()
            await eventually("the answer was cancelled", lambda: service.played[0].closed)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(act())


def test_closing_the_server_does_not_wait_for_a_client_that_does_not_read() -> None:
    async def act() -> None:
        service = ScriptedService([script(*[TextDelta(0, "x" * PIECE_BYTES)] * 4000)])
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(served(service, replace(Limits(), shutdown_s=0.1)))
            client = await stack.enter_async_context(connected(server, 1 << 10))
            await client.send(request("POST", CHAT, question(stream=True)))
            await eventually("the client has more than it takes", lambda: service.played and stuck(service))
            await server.close()
            assert service.played[0].cancelled
            assert asyncio.all_tasks() == {asyncio.current_task()}

    def stuck(service: ScriptedService) -> bool:
        return service.played[0].sent > 8

    asyncio.run(act())


def test_slow_readers_and_aborted_streams_cost_little_and_disturb_nobody() -> None:
    """64 clients that never read, 64 that abort, and a neighbour whose answer comes whole."""

    async def act() -> None:
        endless = script(*[TextDelta(0, "x" * PIECE_BYTES)] * 4000)  # 64 MB each, 4 GB in all
        neighbour = answer(*["word "] * 200)
        service = ScriptedService([*[endless] * 2 * MANY, neighbour])
        async with served(service, replace(Limits(), unread_s=1.0)) as server, AsyncExitStack() as stack:
            used = psutil.Process().memory_info().rss
            clients = [await stack.enter_async_context(connected(server, 1 << 10)) for _ in range(2 * MANY)]
            await begin(clients)
            await eventually("all have begun", lambda: len(service.played) == 2 * MANY)
            for client in clients[MANY:]:
                client.writer.transport.abort()
            async with connected(server) as another:
                found = await another.ask("POST", CHAT, question(stream=True))
                assert found.body.count(b'"word "') == 200
                assert found.body.endswith(b"data: [DONE]\n\n")
            assert psutil.Process().memory_info().rss - used < 256 << 20
            await eventually("all were cut off", lambda: all(one.closed for one in service.played))
            assert all(one.cancelled for one in service.played[:-1])
            assert max(one.sent for one in service.played[:-1]) * PIECE_BYTES < 16 << 20
            await nothing_is_left(server)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def begin(clients: Sequence[RawClient]) -> None:
        for client in clients:
            await client.send(request("POST", CHAT, question(stream=True)))

    async def nothing_is_left(server: HttpServer) -> None:
        await eventually("no connection is left", lambda: not any(isinstance(one, HttpConnection) for one in alive()))
        async with connected(server) as client:
            assert (await client.ask("GET", "/v1/models")).status == 200

    asyncio.run(act())


def alive() -> list[object]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is HttpConnection]
