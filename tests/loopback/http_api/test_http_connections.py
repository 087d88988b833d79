"""HTTP as clients and strangers speak it: bytes on sockets, against a server with a scripted model."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edgepp.errors import EdgeppError, UsageError
from edgepp.http_api.api_keys import add_key
from edgepp.http_api.http_options import HTTP_PORT, HttpOptions, Limits
from edgepp.http_api.server import HttpServer
from tests.builders.raw_http import CHAT, RawClient, connected, question, request, served
from tests.builders.scripted_service import ScriptedService, answer

SHORT = replace(Limits(), head_s=0.2)
Act = Callable[[HttpServer, RawClient], Awaitable[None]]


def run(act: Act, limits: Limits | None = None) -> None:
    """``act`` with a server and a connection to it; afterwards nothing of the server is left."""

    async def all_of_it() -> None:
        async with served(ScriptedService([answer("Hel", "lo")]), limits) as server, connected(server) as client:
            await act(server, client)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(all_of_it())


async def still_serves(server: HttpServer) -> None:
    """Short limits may end a connection of a busy machine before its request has come; not every one."""
    for _ in range(50):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async with connected(server) as another:
                assert (await another.ask("GET", "/v1/models")).status == 200
                return
    pytest.fail("the server answers no more")


def test_a_connection_goes_on_after_errors() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        for method, path, body, headers, status in (
            ("GET", "/nowhere", b"", (), 404),
            ("DELETE", "/v1/models", b"", (), 405),
            ("POST", CHAT, b"", ("Content-Type: text/plain", "Content-Length: 2"), 415),
            ("POST", CHAT, b"{", (), 400),
            ("GET", "/v1/models", b"", ("Origin: https://evil.example",), 403),
            ("GET", "/v1/models", b"", tuple(f"X-{number}: 1" for number in range(150)), 400),
        ):
            found = await client.ask(method, path, body, *headers)
            assert found.status == status, path
            assert found.json["error"]["message"]
            assert found.headers["x-request-id"]
            if status == 415:
                await client.send("{}")  # the announced body of the refused request
        found = await client.ask("POST", CHAT, question(stream=False))
        assert found.json["choices"][0]["message"]["content"] == "Hello"
        assert "server" not in found.headers

    run(act)


def test_a_request_may_end_its_connection() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        found = await client.ask("GET", "/v1/models", b"", "Connection: close")
        assert found.headers["connection"] == "close"
        assert await client.rest() == b""

    run(act)


def test_head_has_the_headers_alone() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        for path in ("/", "/api/version", "/api/tags", "/v1/models", "/nowhere"):
            found = await client.ask("HEAD", path)
            assert int(found.headers["content-length"]) > 0
        assert (await client.ask("GET", "/")).body == b"Ollama is running"

    run(act)


def test_requests_may_be_sent_before_the_responses_are_read() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        await client.send(request("GET", "/v1/models") + request("POST", CHAT, question(stream=False)) * 3)
        assert (await client.response()).json["object"] == "list"
        for _ in range(3):
            assert (await client.response()).json["object"] == "chat.completion"

    run(act)


def test_a_body_in_chunks_and_one_that_waits_for_permission() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        body = question(stream=False)
        await client.send(request("POST", CHAT, b"", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        for piece in (body[:7], body[7:]):
            await client.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await client.send("0\r\n\r\n")
        assert (await client.response()).status == 200
        head = request("POST", CHAT, body, "Expect: 100-continue")[: -len(body)]
        await client.send(head)
        assert (await client.response()).status == 100
        await client.send(body)
        assert (await client.response()).status == 200

    run(act)


def test_an_offer_of_http_2_is_not_taken_up() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
        assert (await client.ask("POST", CHAT, question(stream=False), *upgrade)).status == 200
        assert (await client.ask("GET", "/v1/models")).status == 200

    run(act)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",  # TLS
        b"hello\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",  # no host
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000,
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_not_http_gets_one_sentence_and_the_end(data: bytes) -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(data)
        found = await client.rest()
        assert found == b"" or found.split()[1] in (b"400", b"501"), found
        await still_serves(server)

    run(act, replace(SHORT, idle_s=1))


def test_a_broken_chunk_ends_the_connection_and_nothing_else() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(request("POST", CHAT, b"", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        await client.send("zz\r\n")
        assert b"400" in await client.rest()
        await still_serves(server)

    run(act)


@pytest.mark.parametrize("sent", ["", "GET /v1/mod", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_a_head_that_does_not_come_is_given_up(sent: str) -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(sent)
        assert await client.rest() == b""
        await still_serves(server)

    run(act, SHORT)


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

    run(act, replace(Limits(), head_s=1.0))


def test_a_connection_without_requests_is_closed() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        assert (await client.ask("GET", "/v1/models")).status == 200
        assert await client.rest() == b""

    run(act, replace(Limits(), idle_s=1))


def test_a_body_that_stops_coming_is_refused() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(request("POST", CHAT, question(stream=False))[:-5])
        assert b"the body came too slowly" in await client.rest()
        await still_serves(server)

    run(act, replace(Limits(), body_gap_s=0.2))


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

    run(act, replace(Limits(), body_bytes=100_000))


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

    run(act, replace(Limits(), body_bytes=1_000_000))


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

    run(act, replace(Limits(), num_connections=2))


def test_the_first_free_port_is_taken_and_a_given_one_must_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr("edgepp.http_api.http_options.HTTP_PORT", taken)

        async def act() -> None:
            async with HttpServer(ScriptedService([answer("x")])) as server:
                assert server.taken_port == HTTP_PORT
                assert not server.url.endswith(f":{taken}")
                assert not server.is_exposed
            with pytest.raises(UsageError, match="cannot serve HTTP"):
                await HttpServer(ScriptedService([]), HttpOptions(f"127.0.0.1:{taken}")).open()
            for elsewhere in ("192.0.2.77:0", "192.0.2.77", "nowhere.invalid"):
                with pytest.raises(UsageError, match="cannot serve HTTP"):
                    await HttpServer(ScriptedService([]), HttpOptions(elsewhere)).open()
            async with HttpServer(ScriptedService([answer("x")]), HttpOptions("127.0.0.1")) as server:
                assert server.url.startswith("http://127.0.0.1:")
                assert server.taken_port == HTTP_PORT

        asyncio.run(act())


def test_a_start_that_fails_leaves_no_port_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "file"))

    def listening() -> list[int]:
        connections = psutil.Process().net_connections("tcp")
        return [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]

    before = listening()

    async def act() -> None:
        server = HttpServer(ScriptedService([]), HttpOptions("127.0.0.1:0"))
        with pytest.raises(UsageError, match="cannot make"):
            await server.open()
        with pytest.raises(EdgeppError, match="not open"):
            _ = server.url

    asyncio.run(act())
    assert listening() == before


def test_localhost_is_both_versions_of_ip() -> None:
    async def act() -> None:
        async with HttpServer(ScriptedService([answer("x")]), HttpOptions("localhost:0")) as server:
            port = int(server.url.rpartition(":")[2])
            for host in ("127.0.0.1", "::1"):
                try:
                    reader, writer = await asyncio.open_connection(host, port)
                except OSError:
                    assert host == "::1"  # not every machine has IPv6
                    continue
                client = RawClient(reader, writer)
                assert (await client.ask("GET", "/v1/models")).status == 200
                writer.transport.abort()

    asyncio.run(act())


def test_a_key_that_is_demanded_is_demanded_of_every_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    key = add_key("laptop")

    async def act() -> None:
        options = HttpOptions("127.0.0.1:0", require_key=True)
        async with HttpServer(ScriptedService([answer("x")]), options) as server, connected(server) as client:
            for path in ("/v1/models", "/api/tags", "/metrics", "/openapi.json", "/nowhere"):
                refused = await client.ask("GET", path)
                assert refused.status == 401, path
                assert refused.headers["www-authenticate"] == "Bearer"
            assert (await client.ask("GET", "/")).status == 200
            assert (await client.ask("GET", "/v1/models", b"", f"Authorization: Bearer {key}")).status == 200
            assert (await client.ask("POST", CHAT, question(stream=False))).status == 401
            assert (await client.ask("POST", CHAT, question(stream=False), f"x-api-key: {key}")).status == 200

    asyncio.run(act())


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


POST = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
BODY = question(stream=False)
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


@pytest.mark.parametrize(
    "ambiguous",
    [
        POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED,
        POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        POST + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
        POST + b"Content-Length: %d, 5\r\n\r\n" % len(BODY) + BODY,
        POST + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
        POST + b"Content-Length: 0x2c\r\n\r\n" + BODY,
        POST + LENGTH.replace(b":", b" :") + b"\r\n" + BODY,
        POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
        POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + CHUNKED,
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + CHUNKED,
        POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKED,
        POST + b"X: a\rContent-Length: 5\r\n" + LENGTH + b"\r\n" + BODY,
        POST + b"X: a\0\r\n" + LENGTH + b"\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED.replace(b"\r\n", b"\n"),
        POST + b"Transfer-Encoding: chunked\r\n\r\n0x" + CHUNKED,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED.replace(BODY + b"\r\n", BODY + b"XX"),
        POST.replace(b"HTTP/1.1", b"HTTP/2.0") + LENGTH + b"\r\n" + BODY,
    ],
    ids=lambda data: repr(data[len(POST) :][:50]),
)
def test_a_request_whose_end_is_ambiguous_is_refused_and_nothing_behind_it_is_answered(ambiguous: bytes) -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(ambiguous + request("GET", "/v1/models"))
        found = await client.rest()
        assert found.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert found.count(b"HTTP/1.1 ") == 1
        assert b"SmolLM2" not in found
        assert b"x-request-id: req_" in found
        assert b"retry-after" not in found.lower()
        await still_serves(server)

    run(act)


@pytest.mark.parametrize(
    "plain",
    [
        POST + LENGTH + LENGTH + b"\r\n" + BODY,  # twice the same
        POST + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,  # a continued line, read as one
        POST.replace(b"\r\n", b"\n") + LENGTH.replace(b"\r\n", b"\n") + b"\n" + BODY,
    ],
    ids=["same length twice", "continued line", "bare LF"],
)
def test_what_has_one_meaning_is_answered(plain: bytes) -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        await client.send(plain + request("GET", "/v1/models"))
        assert (await client.response()).json["object"] == "chat.completion"
        assert (await client.response()).json["object"] == "list"

    run(act)


def test_a_request_may_name_its_target_by_a_whole_url_of_this_server() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        assert (await client.ask("GET", "http://localhost/v1/models")).json["object"] == "list"
        assert (await client.ask("GET", "http://127.0.0.1:80/v1/models?x=1")).status == 200
        assert (await client.ask("GET", "http://localhost")).body == b"Ollama is running"
        assert (await client.ask("POST", f"http://localhost{CHAT}", question(stream=False))).status == 200
        for other in ("http://evil.example/v1/models", "http://me@localhost/v1/models", "http:///v1/models"):
            assert (await client.ask("GET", other)).status == 403, other

    run(act)
