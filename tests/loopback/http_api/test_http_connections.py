"""HTTP as clients and strangers speak it: bytes on sockets, against a server with a scripted model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgepp.http_api.http_options import Limits
from edgepp.http_api.server import HttpServer
from tests.builders.raw_http import CHAT, RawClient, act_on_server, question, request, still_serves

SHORT = replace(Limits(), head_s=0.2, idle_s=1)


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

    act_on_server(act)


def test_a_request_may_end_its_connection() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        found = await client.ask("GET", "/v1/models", b"", "Connection: close")
        assert found.headers["connection"] == "close"
        assert await client.rest() == b""

    act_on_server(act)


def test_head_has_the_headers_alone() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        for path in ("/", "/api/version", "/api/tags", "/v1/models", "/nowhere"):
            found = await client.ask("HEAD", path)
            assert int(found.headers["content-length"]) > 0
        assert (await client.ask("GET", "/")).body == b"Ollama is running"

    act_on_server(act)


def test_requests_may_be_sent_before_the_responses_are_read() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        await client.send(request("GET", "/v1/models") + request("POST", CHAT, question(stream=False)) * 3)
        assert (await client.response()).json["object"] == "list"
        for _ in range(3):
            assert (await client.response()).json["object"] == "chat.completion"

    act_on_server(act)


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

    act_on_server(act)


def test_an_offer_of_http_2_is_not_taken_up() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
        assert (await client.ask("POST", CHAT, question(stream=False), *upgrade)).status == 200
        assert (await client.ask("GET", "/v1/models")).status == 200

    act_on_server(act)


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

    act_on_server(act, SHORT)


def test_a_broken_chunk_ends_the_connection_and_nothing_else() -> None:
    async def act(server: HttpServer, client: RawClient) -> None:
        await client.send(request("POST", CHAT, b"", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        await client.send("zz\r\n")
        assert b"400" in await client.rest()
        await still_serves(server)

    act_on_server(act)


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

    act_on_server(act)


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

    act_on_server(act)


def test_a_request_may_name_its_target_by_a_whole_url_of_this_server() -> None:
    async def act(_: HttpServer, client: RawClient) -> None:
        assert (await client.ask("GET", "http://localhost/v1/models")).json["object"] == "list"
        assert (await client.ask("GET", "http://127.0.0.1:80/v1/models?x=1")).status == 200
        assert (await client.ask("GET", "http://localhost")).body == b"Ollama is running"
        assert (await client.ask("POST", f"http://localhost{CHAT}", question(stream=False))).status == 200
        for other in ("http://evil.example/v1/models", "http://me@localhost/v1/models", "http:///v1/models"):
            assert (await client.ask("GET", other)).status == 403, other

    act_on_server(act)
