"""Paths, request ids, numbers of headers and of requests, and content types."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api.access.content_types import ContentTypes
from edgepp.http_api.access.fair_use import FairUse
from edgepp.http_api.access.head_limits import HeadLimits
from edgepp.http_api.access.paths import Paths, plain
from edgepp.http_api.access.request_ids import RequestIds
from edgepp.http_api.http_options import Limits
from tests.builders.asgi import Answered, Echo, Headers, call, scope


def answer(app: ASGIApp, asked: Scope, *pieces: bytes) -> Answered:
    found = asyncio.run(call(app, asked, *pieces))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("//v1//chat/completions//", "/v1/chat/completions"),
        ("/v1/v1/models", "/v1/models"),
        ("/v1/api/tags", "/api/tags"),
        ("/v1/models/org/name", "/v1/models/org/name"),
        ("/v1/models/api/v1/name", "/v1/models/api/v1/name"),
        ("/api/v1/models", "/v1/models"),
        ("/api/v1//chat/completions/", "/v1/chat/completions"),
        ("/api/v1/api/tags", "/api/tags"),
        ("/api/api/tags", "/api/tags"),
        ("/api/v0/models", "/api/v0/models"),
        ("/ollama/api/tags", "/api/tags"),
        ("/ollama/api/api/tags", "/api/tags"),
        ("/ollama/api/v1/models", "/v1/models"),
        ("/ollama/v1/models", "/v1/models"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/chat/completions", "/chat/completions"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/anthropic", "/anthropic"),
        ("/apiv1/models", "/apiv1/models"),
        ("/ollamas/api/tags", "/ollamas/api/tags"),
        ("", "/"),
    ],
)
def test_paths_as_clients_write_them(written: str, meant: str) -> None:
    app = Echo()
    answer(Paths(app), scope(path=written))
    assert app.seen[0]["path"] == plain(written) == meant


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        (b"http://localhost/v1/models", b"localhost", "/v1/models"),
        (b"HTTP://LocalHost:11434/v1/models%20x/", b"LocalHost:11434", "/v1/models x"),
        (b"https://[::1]:80", b"[::1]:80", "/"),
        (b"http:///v1/models", b"", "/v1/models"),
        (b"/http://evil.example/v1", b"localhost:11434", "/http:/evil.example/v1"),
    ],
)
def test_of_a_whole_url_the_authority_is_the_host_and_the_rest_the_path(target: bytes, host: bytes, path: str) -> None:
    app = Echo()
    asked = {**scope(path=unquote(target.decode())), "raw_path": target}
    answer(Paths(app), asked)
    assert app.seen[0]["path"] == path
    assert [value for name, value in app.seen[0]["headers"] if name == b"host"] == [host]


@pytest.mark.parametrize("given", ["abc-123", "req_0:1.2", "x" * 64])
def test_a_plain_request_id_is_kept(given: str) -> None:
    app = Echo()
    found = answer(RequestIds(app), scope(headers=[("X-Request-Id", given)]))
    assert found.headers["x-request-id"] == found.headers["request-id"] == given
    assert app.seen[0]["state"]["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", 'a"', "é", "a/b", "{}"])
def test_another_request_id_is_made(given: str) -> None:
    app = Echo()
    ids = {answer(RequestIds(app), scope(headers=[("X-Request-Id", given)])).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(one.startswith("req_") and len(one) == 28 for one in ids)
    assert given not in ids


def test_a_request_has_so_many_headers_and_no_more() -> None:
    app = HeadLimits(Echo(), Limits(num_headers=100))
    few: Headers = [(f"x-{number}", "") for number in range(99)]
    assert answer(app, scope(headers=few)).status == 200
    assert answer(app, scope(headers=[*few, ("x", "")])).status == 400


def test_a_head_has_so_many_bytes_and_no_more() -> None:
    app = HeadLimits(Echo(), Limits(head_bytes=1000))
    assert answer(app, scope(headers=[("x", "1" * 900)])).status == 200
    for asked in (scope(headers=[("x", "1" * 1000)]), scope(path="/" + "x" * 1000)):
        assert answer(app, asked).status == 400
    assert answer(app, {**scope(), "query_string": b"x" * 1000}).status == 400


BODY = ("Content-Length", "2")


@pytest.mark.parametrize(
    ("path", "headers", "client", "status"),
    [
        ("/v1/chat/completions", [("Content-Type", "application/json"), BODY], "10.0.0.2", 200),
        ("/v1/chat/completions", [("Content-Type", "Application/JSON; charset=utf-8"), BODY], "10.0.0.2", 200),
        ("/v1/chat/completions", [("Content-Type", "text/plain"), BODY], "127.0.0.1", 415),
        ("/v1/chat/completions", [("Content-Type", "application/x-www-form-urlencoded"), BODY], "127.0.0.1", 415),
        ("/v1/chat/completions", [("Content-Type", "multipart/form-data; boundary=x"), BODY], "127.0.0.1", 415),
        ("/v1/chat/completions", [("Content-Type", "text/plain; application/json"), BODY], "127.0.0.1", 415),
        ("/v1/chat/completions", [BODY], "127.0.0.1", 415),
        ("/v1/chat/completions", [("Transfer-Encoding", "chunked")], "127.0.0.1", 415),
        ("/v1/chat/completions", [("Content-Length", "0")], "127.0.0.1", 200),
        ("/v1/chat/completions", [], "127.0.0.1", 200),
        ("/api/chat", [("Content-Type", "application/x-www-form-urlencoded"), BODY], "127.0.0.1", 200),
        ("/api/chat", [BODY], "::1", 200),
        ("/api/chat", [("Content-Type", "application/x-www-form-urlencoded"), BODY], "192.168.1.9", 415),
        ("/api/chat", [("Content-Type", "text/plain"), BODY], "127.0.0.1", 415),
        ("/api/chat", [BODY, ("Origin", "http://localhost:3000")], "127.0.0.1", 415),
        ("/api/chat", [BODY, ("Sec-Fetch-Site", "same-origin")], "127.0.0.1", 415),
    ],
)
def test_bodies_are_json_except_those_of_curl_on_this_machine(
    path: str, headers: Headers, client: str, status: int
) -> None:
    assert answer(ContentTypes(Echo()), scope("POST", path, headers, client), b"{}").status == status


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "ZSTD", "br", "gzip, identity"])
def test_a_compressed_body_is_refused_by_the_name_of_its_encoding(path: str, coding: str) -> None:
    asked = scope("POST", path, [("Content-Type", "application/json"), ("Content-Encoding", coding), BODY])
    found = answer(ContentTypes(Echo()), asked, b"{}")
    assert (found.status, found.headers["accept-encoding"]) == (415, "identity")
    assert coding.lower() in found.body.decode()
    plain_body = scope("POST", path, [("Content-Type", "application/json"), ("Content-Encoding", "identity"), BODY])
    assert answer(ContentTypes(Echo()), plain_body, b"{}").status == 200


class _Held:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, asked: Scope, receive: Receive, send: Send) -> None:
        await self.go.wait()
        await Echo()(asked, receive, send)


def test_an_owner_has_so_many_requests_at_a_time_and_others_are_undisturbed() -> None:
    async def run() -> None:
        held = _Held()
        app = FairUse(held, 2)

        def ask(owner: str, client: str = "127.0.0.1", method: str = "POST") -> asyncio.Task[Answered | None]:
            asked = {**scope(method, "/v1/completions", client=client), "state": {"owner": owner}}
            return asyncio.create_task(call(app, asked))

        running = [ask("laptop"), ask("laptop"), ask("phone"), ask(""), ask("", "::1"), ask("laptop", method="GET")]
        await asyncio.sleep(0)
        refused = await ask("laptop")
        assert refused is not None
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert int(refused.headers["retry-after-ms"]) >= 1
        held.go.set()
        assert {found.status for found in await asyncio.gather(*running) if found is not None} == {200}
        again = await ask("laptop")
        assert again is not None
        assert again.status == 200

    asyncio.run(run())
