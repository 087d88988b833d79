"""Clients that are slow, send too much, or are too many, and refusals that arrive at them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgepp.http_api.api_keys import add_key
from edgepp.http_api.http_options import HttpOptions, Limits
from edgepp.http_api.server import HttpServer
from tests.builders.raw_http import CHAT, RawClient, act_on_server, connected, question, request, still_serves
from tests.builders.scripted_service import ScriptedService, answer

SHORT = replace(Limits(), head_s=0.2)


@pytest.mark.parametrize("sent", ["", "GET /v1/mod", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_a_head_that_does_not_come_is_given_up(sent: str) -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(sent)
        assert await client.rest() == b""
        await still_serves(server)

    act_on_server(act, SHORT)


def test_a_head_that_drips_is_given_up_also_as_the_second_of_a_connection() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        assert (await client.ask("GET", "/v1/models")).status == 200
        dripping = asyncio.create_task(drip(client))
        assert await client.rest() == b""
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        await still_serves(server)

    async def drip(client: RawClient) -> None:
        await client.send("GET /v1/models HTTP/1.1\r\nX: ")
        while True:
            await client.send("x")
            await asyncio.sleep(0.02)

    act_on_server(act, replace(Limits(), head_s=1.0))


def test_a_connection_without_requests_is_closed() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        assert (await client.ask("GET", "/v1/models")).status == 200
        assert await client.rest() == b""

    act_on_server(act, replace(Limits(), idle_s=1))


def test_a_body_that_stops_coming_is_refused() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(request("POST", CHAT, question(stream=False))[:-5])
        assert b"the body came too slowly" in await client.rest()
        await still_serves(server)

    act_on_server(act, replace(Limits(), body_gap_s=0.2))


def test_a_body_that_is_too_large_is_refused_in_a_response_that_arrives() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        body = json.dumps({"messages": [], "padding": "x" * 200_000}).encode()
        found = await client.ask("POST", CHAT, body)
        assert found.status == 413
        found = await client.ask("POST", CHAT, question(stream=False))  # the connection goes on
        assert found.status == 200
        await client.send(request("POST", CHAT, body, "Expect: 100-continue")[: -len(body)])
        assert (await client.response()).status == 413  # before a byte of it was sent
        assert await client.rest() == b""
        await still_serves(server)

    act_on_server(act, replace(Limits(), body_bytes=100_000))


def test_an_endless_body_is_cut_off() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(request("POST", CHAT, b"", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        flooding = asyncio.create_task(flood(client))
        assert b" 413 " in await client.rest()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        await still_serves(server)

    async def flood(client: RawClient) -> None:
        while True:
            await client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await asyncio.sleep(0)

    act_on_server(act, replace(Limits(), body_bytes=1_000_000))


def test_one_connection_too_many_is_told_so() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        assert (await client.ask("GET", "/v1/models")).status == 200
        async with connected(server) as second:
            assert (await second.ask("GET", "/v1/models")).status == 200
            async with connected(server) as third:
                refused = await third.response()
                assert refused.status == 503
                assert refused.headers["retry-after"]
                assert refused.headers["x-request-id"]
                assert refused.json["error"]["type"] == "server_error"
                assert "connections" in refused.json["error"]["message"]
            assert (await second.ask("GET", "/v1/models")).status == 200

    act_on_server(act, replace(Limits(), num_connections=2))


LARGE = b'{"padding":"' + b"x" * (20 << 20) + b'"}'


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", CHAT, (), 401),
        ("POST", CHAT, ("Origin: https://evil.example",), 403),
        ("POST", CHAT, ("Host: another.example",), 400),
        ("POST", CHAT, ("KEY", "Content-Type: text/plain"), 415),
        ("POST", CHAT, ("KEY", "Transfer-Encoding: chunked"), 400),
        ("POST", "/nowhere", ("KEY", "Content-Type: application/json"), 404),
        ("POST", CHAT, ("KEY", "Content-Type: application/json"), 400),
    ],
)
@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_refusal_arrives_at_a_client_that_sends_all_of_a_large_body_first(
    method: str,
    path: str,
    headers: tuple[str, ...],
    status: int,
    connection: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    key = f"x-api-key: {add_key('laptop')}"

    async def act() -> None:
        options = HttpOptions("127.0.0.1:0", require_key=True)
        async with HttpServer(ScriptedService([answer("x")]), options) as server, connected(server) as client:
            lines = [key if header == "KEY" else header for header in headers]
            lines += [f"Connection: {connection}", f"Content-Length: {len(LARGE)}"]
            await client.send(request(method, path, b"", *lines))
            client.writer.write(LARGE)
            await client.writer.drain()  # raises if the connection is reset
            assert (await client.response()).status == status

    asyncio.run(act())
