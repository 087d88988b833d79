"""An answer ends at once when the reader of its stream closes the stream."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import BaseRoute
from starlette.types import Message

from edgepp.http_api.anthropic_api import messages
from edgepp.http_api.collected_answer import collected
from edgepp.http_api.generation import Started, TextDelta, ToolCallDelta
from edgepp.http_api.iterator_closing import closing
from edgepp.http_api.ollama_api import routes as ollama_routes
from edgepp.http_api.openai_api import responses
from edgepp.http_api.openai_api import routes as openai_routes
from edgepp.http_api.operation import Operation
from tests.builders.asgi import scope
from tests.builders.scripted_service import ScriptedService

QUESTION = [{"role": "user", "content": "hi"}]


def routes(service: ScriptedService) -> list[BaseRoute]:
    return [
        *openai_routes.routes(service),
        *responses.routes(service),
        *messages.routes(service),
        *ollama_routes.routes(service),
    ]


async def streamed(service: ScriptedService, path: str, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The frames of a streamed answer, as a server would send them."""

    async def receive() -> Message:
        if given:
            return {"type": "http.request", "body": given.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    given = [json.dumps(body | {"stream": True}).encode()]
    (route,) = [one for one in routes(service) if isinstance(one, Operation) and one.path == path]
    response = await route.endpoint.handler(Request(scope("POST", path), receive))
    assert isinstance(response, StreamingResponse)
    return cast("AsyncGenerator[bytes, None]", response.body_iterator)


STREAMED = pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/completions", {"prompt": ["hi", "ho"]}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": QUESTION}),
        ("/api/chat", {"messages": QUESTION}),
        ("/api/generate", {"prompt": "hi"}),
    ],
)


@STREAMED
def test_a_stream_that_is_closed_closes_its_answer_with_it(path: str, body: dict[str, Any]) -> None:
    service = ScriptedService([[Started(3), *[TextDelta(0, "word ")] * 9, asyncio.Event()]])

    async def read() -> None:
        frames = await streamed(service, path, body)
        while service.played[0].sent < 3:
            await anext(frames)
        await frames.aclose()
        assert service.played[0].cancelled  # without any further turn of the event loop

    asyncio.run(read())


@STREAMED
def test_a_client_that_goes_before_the_first_frame_is_read_closes_the_answer(path: str, body: dict[str, Any]) -> None:
    service = ScriptedService([[Started(3), *[TextDelta(0, "word ")] * 9, asyncio.Event()]])
    given = [json.dumps(body | {"stream": True}).encode()]
    sent: list[str] = []
    head_is_sent = asyncio.Event()

    async def receive() -> Message:
        if given:
            return {"type": "http.request", "body": given.pop(), "more_body": False}
        await head_is_sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message["type"])
        head_is_sent.set()
        await asyncio.Event().wait()  # the client takes nothing in

    async def ask() -> None:
        (route,) = [one for one in routes(service) if isinstance(one, Operation) and one.path == path]
        gc.disable()
        try:
            await route.app(scope("POST", path), receive, send)
            assert service.played[0].cancelled  # without any further turn of the event loop
        finally:
            gc.enable()

    asyncio.run(ask())
    assert sent == ["http.response.start"]
    assert [one.sent for one in service.played] == [1]


def test_an_answer_whose_events_cannot_be_collected_is_closed() -> None:
    service = ScriptedService([[Started(3), ToolCallDelta(0, 0, "{}"), TextDelta(0, "never")]])

    async def collect() -> None:
        events = service.generate(cast(Any, None))
        with pytest.raises(IndexError):
            await collected(events)
        assert service.played[0].cancelled

    asyncio.run(collect())


def test_what_cannot_be_closed_is_left_as_it_is() -> None:
    class Endless:
        def __aiter__(self) -> Endless:
            return self

        async def __anext__(self) -> int:
            return 1

    async def read() -> int:
        async with closing(Endless()) as numbers:
            return await anext(numbers)

    assert asyncio.run(read()) == 1
