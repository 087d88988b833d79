"""/openapi.json describes every route, by the types that decode its bodies."""

from __future__ import annotations

from edgepp.http_api.app import ROUTE_LISTS
from edgepp.http_api.openapi import document
from edgepp.http_api.operation import Operation
from tests.builders.scripted_service import AnyName, answer

SERVICE = AnyName([answer("a", "b")])
ROUTES = [route for routes in ROUTE_LISTS for route in routes(SERVICE)]
OPERATIONS = [route for route in ROUTES if isinstance(route, Operation) and route.include_in_schema]


def test_every_route_is_described_once() -> None:
    paths = document(ROUTES)["paths"]
    assert sum(len(path) for path in paths.values()) == len(OPERATIONS)
    assert [route for route in ROUTES if getattr(route, "include_in_schema", True)] == OPERATIONS


def test_bodies_are_described_by_the_types_that_decode_them() -> None:
    told = document(ROUTES)
    body = told["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatBody"}
    chat = told["components"]["schemas"]["ChatBody"]
    assert chat["required"] == ["messages"]
    assert {"temperature", "tools", "response_format", "stream"} <= set(chat["properties"])
