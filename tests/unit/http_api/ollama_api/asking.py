"""Requests of Ollama's API to a scripted service, plain and by the SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import ollama

from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    Started,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.ollama_api.routes import routes
from edgepp.http_api.routing import Routing
from edgepp.model.text.conversation import Conversation
from tests.builders.scripted_service import SERVED, ScriptedService, Step, answer

T = TypeVar("T")
USAGE = Usage(prompt_tokens=7, completion_tokens=3)
CALL: list[Step] = [
    Started(7),
    ToolCallStarted(0, 0, "call_1", "weather"),
    ToolCallDelta(0, 0, '{"city":'),
    ToolCallDelta(0, 0, '"Oslo"}'),
    ToolCallEnded(0, 0, '{"city":"Oslo"}'),
    ChoiceEnded(0, "tool_calls", usage=USAGE),
    Ended(USAGE),
]


def served(*scripts: Sequence[Step], **changes: Any) -> ScriptedService:
    return ScriptedService(scripts or [answer("Hel", "lo")], model=replace(SERVED, **changes))


def sent(service: ScriptedService, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
    """The response of the routes to one request."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Routing(routes(service)))
        async with httpx.AsyncClient(transport=transport, base_url="http://edgepp.test") as client:
            return await client.request(method, path, content=content, **more)

    return asyncio.run(ask())


def with_sdk(service: ScriptedService, work: Callable[[ollama.AsyncClient], Awaitable[T]]) -> T:
    """The result of ``work`` with a client of the SDK."""

    async def run() -> T:
        client = ollama.AsyncClient("http://edgepp.test", transport=httpx.ASGITransport(Routing(routes(service))))
        try:
            return await work(client)
        finally:
            await client._client.aclose()

    return asyncio.run(run())


def question(text: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"model": "smollm2-135m", "messages": [{"role": "user", "content": text}], **more}


def taken(service: ScriptedService, *messages: dict[str, Any], **more: Any) -> list[Any]:
    """The messages of the prompt that a chat makes."""
    response = sent(service, "POST", "/api/chat", {"messages": list(messages), "stream": False, **more})
    assert response.status_code == 200, response.text
    prompt = service.request.prompt
    assert isinstance(prompt, Conversation)
    return list(prompt.messages)


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}
