"""A server that closes while answers run: each ends as its API tells of errors, whole as HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from edgepp.http_api.generation import Started, TextDelta
from edgepp.http_api.http_options import Limits
from tests.builders.raw_http import CHAT, RawClient, Response, connected, eventually, question, request, served
from tests.builders.scripted_service import ScriptedService, Step

SHORT = replace(Limits(), shutdown_s=0.1)
CHATS = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10}
PROMPT = {"prompt": "x", "max_tokens": 10}
SENTENCE = "mini-1 stopped serving"


@dataclass(frozen=True)
class Api:
    """A path that answers, and where its errors have their sentence."""

    path: str
    body: dict[str, Any]
    last: bytes
    """What stands in the last frame of a stream that fails."""

    def request(self, *, stream: bool) -> bytes:
        return request("POST", self.path, json.dumps({**self.body, "stream": stream}).encode())


APIS = (
    Api(CHAT, CHATS, b'data: {"error":'),
    Api("/v1/completions", PROMPT, b'data: {"error":'),
    Api("/v1/responses", {"input": "x"}, b"event: response.failed\n"),
    Api("/v1/messages", CHATS, b"event: error\n"),
    Api("/api/chat", CHATS, b'{"error":'),
    Api("/api/generate", PROMPT, b'{"error":'),
)
each_api = pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)


async def ended(api: Api, script: Sequence[Step], *, stream: bool) -> Response:
    """The response to a request that the server is closed under, once ``script`` has come to its ``asyncio.Event``."""
    service = ScriptedService([script], state={"coordinator": "mini-1"})
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(service, SHORT))
        client = await stack.enter_async_context(connected(server))
        idle = await stack.enter_async_context(connected(server))
        await client.send(api.request(stream=stream))
        await eventually("the request waits", lambda: service.played and service.played[0].sent == len(script) - 1)
        if stream and len(script) > 1:
            await eventually("the stream has begun", lambda: b"begun" in bytes(client.reader._buffer))  # type: ignore[attr-defined]
        await server.close()
        assert service.played[0].cancelled
        assert await idle.rest() == b""
        found = await client.response()
        assert await client.rest() == b""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return found


def sentence(body: Any) -> str:
    error = body["error"]
    return str(error if isinstance(error, str) else error["message"])


@each_api
def test_a_stream_ends_with_the_error_of_its_api_and_its_last_chunk(api: Api) -> None:
    found = asyncio.run(ended(api, [Started(3), TextDelta(0, "begun"), asyncio.Event()], stream=True))
    assert found.status == 200
    before, mark, last = found.body.rpartition(api.last)
    assert b"begun" in before
    assert mark
    assert SENTENCE.encode() in last


@each_api
@pytest.mark.parametrize("has_begun", [True, False], ids=["begun", "waiting"])
def test_an_answer_that_is_not_streamed_gets_503_in_the_form_of_its_api(api: Api, has_begun: bool) -> None:
    script: list[Step] = [Started(3), TextDelta(0, "begun")] if has_begun else []
    refused(asyncio.run(ended(api, [*script, asyncio.Event()], stream=False)))


@each_api
def test_a_stream_that_has_not_begun_gets_503(api: Api) -> None:
    refused(asyncio.run(ended(api, [asyncio.Event()], stream=True)))


def refused(found: Response) -> None:
    assert found.status == 503
    assert found.headers["content-type"] == "application/json"
    assert int(found.headers["retry-after"]) >= 1
    assert found.headers["x-request-id"]
    assert sentence(found.json).startswith(SENTENCE)


def test_a_body_that_has_not_come_whole_gets_503_too() -> None:
    async def act() -> None:
        service = ScriptedService([[]], state={"coordinator": "mini-1"})
        async with served(service, SHORT) as server, connected(server) as client:
            body = question(stream=True)
            await client.send(request("POST", CHAT, body, "Expect: 100-continue")[: -len(body)])
            assert (await client.response()).status == 100  # so the server waits for the body
            await server.close()
            refused(await client.response())
            assert service.played == []

    asyncio.run(act())


def test_an_answer_that_ends_in_time_is_whole() -> None:
    async def act() -> None:
        service = ScriptedService([[Started(3), TextDelta(0, "begun"), go := asyncio.Event(), TextDelta(0, "done")]])
        async with served(service, replace(Limits(), shutdown_s=60)) as server, connected(server) as client:
            await client.send(request("POST", CHAT, question(stream=True)))
            await client.until(b"begun")
            closing = asyncio.create_task(server.close())
            await asyncio.sleep(0)
            go.set()
            await closing
            assert b"done" in (rest := await client.rest())
            assert rest.endswith(b"0\r\n\r\n")
            assert b"stopped" not in rest

    asyncio.run(act())


def test_clients_that_do_not_read_delay_neither_the_end_nor_a_neighbour() -> None:
    async def act() -> None:
        endless: list[Step] = [Started(3), *[TextDelta(0, "x" * (16 << 10))] * 4000]
        neighbour: list[Step] = [Started(3), TextDelta(0, "begun"), asyncio.Event()]
        service = ScriptedService([*[endless] * 8, neighbour], state={"coordinator": "mini-1"})
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(served(service, SHORT))
            clients = [await stack.enter_async_context(connected(server, 1 << 10)) for _ in range(8)]
            for client in clients:
                await client.send(request("POST", CHAT, question(stream=True)))
            await eventually("they have more than they take", lambda: len(service.played) == 8 and all_stuck(service))
            reader: RawClient = await stack.enter_async_context(connected(server))
            await reader.send(request("POST", CHAT, question(stream=True)))
            await reader.until(b"begun")
            await server.close()
            assert all(one.cancelled for one in service.played)
            assert SENTENCE.encode() in (rest := await reader.rest())
            assert rest.endswith(b"0\r\n\r\n")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def all_stuck(service: ScriptedService) -> bool:
        return all(one.sent > 8 for one in service.played)

    asyncio.run(act())
