"""/openapi.json, and requests made from it: no input may break the server (set EDGEPP_HTTP_CASES for more of them)."""

from __future__ import annotations

import os

import schemathesis
from hypothesis import HealthCheck, settings
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from edgepp.http_api.ollama_api.routes import routes as ollama_routes
from edgepp.http_api.openai_api.routes import routes as openai_routes
from edgepp.http_api.openapi import described, document
from edgepp.http_api.operation import Operation
from tests.builders.scripted_service import ScriptedService, answer

CASES = int(os.environ.get("EDGEPP_HTTP_CASES", "200"))
"""Requests of all operations together."""


def all_routes() -> list[BaseRoute]:
    service = ScriptedService([answer("a", "b")])
    return [*openai_routes(service), *ollama_routes(service)]


ROUTES = all_routes()
NUM_OPERATIONS = sum(isinstance(route, Operation) and route.include_in_schema for route in ROUTES)
schema = schemathesis.openapi.from_asgi("/openapi.json", Starlette(routes=described(ROUTES)))


def test_every_route_is_described_once() -> None:
    paths = document(ROUTES)["paths"]
    assert sum(len(path) for path in paths.values()) == NUM_OPERATIONS
    assert all(isinstance(route, Operation) for route in ROUTES)


def test_bodies_are_described_by_the_types_that_decode_them() -> None:
    told = document(ROUTES)
    body = told["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatBody"}
    chat = told["components"]["schemas"]["ChatBody"]
    assert chat["required"] == ["messages"]
    assert {"temperature", "tools", "response_format", "stream"} <= set(chat["properties"])


@schema.parametrize()
@settings(
    max_examples=max(1, CASES // NUM_OPERATIONS),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_the_server(case: schemathesis.Case) -> None:
    response = case.call()
    assert response.status_code in (200, 400, 404, 405, 415, 501), response.text
    if response.status_code != 200:
        assert "error" in response.json()
