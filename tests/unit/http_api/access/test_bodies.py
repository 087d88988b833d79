"""Bodies: sizes, times and shapes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from edgepp.http_api.access.bodies import Bodies
from edgepp.http_api.access.json_shape import exceeds
from edgepp.http_api.http_options import Limits
from tests.builders.asgi import Answered, Echo, Headers, call, scope

LIMITS = replace(Limits(), body_bytes=1000, all_bodies_bytes=1500, json_levels=4, json_values=50)


def answer(*pieces: bytes, headers: Headers = (), app: Bodies | None = None) -> Answered:
    found = asyncio.run(call(app or Bodies(Echo(), LIMITS), scope("POST", "/v1/completions", headers), *pieces))
    assert found is not None
    return found


def test_a_body_in_pieces_arrives_whole() -> None:
    assert answer(b"[1,", b"", b"2]").body == b"[1,2]"
    assert answer().body == b""


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ((b"x",), [("Content-Length", "1001")]),
        ((b"x",), [("Content-Length", "9" * 100)]),
        ((b"x" * 600, b"x" * 600), []),
    ],
)
def test_a_body_that_is_too_large_gets_413_and_frees_what_it_held(pieces: tuple[bytes], headers: Headers) -> None:
    app = Bodies(Echo(), LIMITS)
    for _ in range(3):
        found = answer(*pieces, headers=headers, app=app)
        assert found.status == 413
        assert "larger than" in found.json["error"]["message"]
    assert answer(b'"' + b"x" * 900 + b'"', app=app).status == 200


def test_all_bodies_together_have_a_limit() -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def hold(asked: Scope, receive: Receive, send: Send) -> None:
            await go.wait()
            await Echo()(asked, receive, send)

        app = Bodies(hold, LIMITS)
        first = asyncio.create_task(call(app, scope("POST", "/v1/completions"), b"x" * 900))
        await asyncio.sleep(0)
        second = await call(app, scope("POST", "/v1/completions"), b"x" * 900)
        assert second is not None
        assert second.status == 503
        assert "retry-after" in second.headers
        go.set()
        for asked in (first, call(app, scope("POST", "/v1/completions"), b"x" * 900)):
            found = await asked
            assert found is not None
            assert found.status == 200

    asyncio.run(run())


def test_a_client_that_goes_away_in_mid_body_reaches_nobody() -> None:
    app = Echo()
    bodies = Bodies(app, LIMITS)
    for _ in range(5):
        assert asyncio.run(call(bodies, scope("POST", "/v1/completions"), b"x" * 900, gone=True)) is None
    assert app.seen == []
    assert answer(b"1", app=bodies).status == 200


def test_a_body_that_stops_coming_is_given_up() -> None:
    async def run() -> Answered | None:
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        limits = replace(LIMITS, body_gap_s=0.01)
        await Bodies(Echo(), limits)(scope("POST", "/v1/completions", [("Expect", "100-continue")]), receive, send)
        assert sent[0]["status"] == 400
        assert (b"connection", b"close") in sent[0]["headers"]
        return None

    asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [
        "[" * 5 + "]" * 5,
        '{"a":' * 5 + "1" + "}" * 5,
        '[{"a":[{"b":[1]}]}]',
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "[" + "[]," * 60 + "[]]",
        "[" + "0," * 60 + "0]",
    ],
    ids=lambda body: body[:12],
)
def test_a_body_that_is_too_deep_or_has_too_many_values_is_refused(body: str) -> None:
    assert exceeds(body.encode(), 4, 50)
    limits = replace(LIMITS, body_bytes=1 << 20, all_bodies_bytes=1 << 20)
    assert answer(body.encode(), app=Bodies(Echo(), limits)).status == 400


def test_brackets_and_commas_in_text_do_not_count() -> None:
    for text in ("[[[[[[[[,,,,,,", '\\"[[[[[[[[', "}]" * 99, "," * 99, '"' * 9 + "{" * 99, "\\" * 7 + "[" * 99):
        assert exceeds(json.dumps({"content": [text, text]}).encode(), 4, 50) is None


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=40,
)


@given(JSON, st.integers(1, 6))
def test_the_levels_are_those_of_the_decoded_value(value: object, levels: int) -> None:
    too_much = exceeds(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), levels, 1 << 20)
    assert (too_much is not None) == (_depth(value) > levels)


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at_in_peace(body: bytes) -> None:
    exceeds(body, 2, 5)
