"""Requests to the routes of OpenAI's API, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from edgepp.http_api.openai_api.routes import routes
from edgepp.http_api.routing import Routing
from tests.builders.scripted_service import ScriptedService


def request(
    service: ScriptedService, method: str, path: str, body: Any = None, content: bytes | None = None
) -> httpx.Response:
    """The response to one request, whose body is ``body`` as JSON, or ``content``."""

    async def respond() -> httpx.Response:
        transport = httpx.ASGITransport(Routing(routes(service)))
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return await client.request(method, path, json=body, content=content)

    return asyncio.run(respond())


def post(service: ScriptedService, path: str, **body: Any) -> Any:
    """The JSON of the response to a ``POST`` that succeeds."""
    response = request(service, "POST", path, body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(service: ScriptedService, path: str, **body: Any) -> dict[str, Any]:
    """The error that a ``POST`` is refused with, and its status."""
    response = request(service, "POST", path, body)
    assert response.status_code >= 400, response.text
    told: dict[str, Any] = response.json()["error"]
    return told | {"status": response.status_code}
