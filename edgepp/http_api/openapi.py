"""``/openapi.json``: the description of all routes that are an ``Operation``, from the types that decode bodies."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgepp.http_api.endpoint import json_response
from edgepp.http_api.operation import Operation

_ERRORS = "an error, as the API of this path writes it"


def described(routes: list[BaseRoute]) -> list[BaseRoute]:
    """The given routes, and ``/openapi.json``, which describes them."""
    body = document(routes)

    async def openapi(_: Request) -> Response:
        return json_response(body)

    return [*routes, Route("/openapi.json", openapi)]


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of ``routes``."""
    operations = [route for route in routes if isinstance(route, Operation)]
    bodies = [operation.body for operation in operations if operation.body is not None]
    schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    remaining = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        schema = next(remaining) if operation.body is not None else None
        paths.setdefault(operation.path_format, {})[operation.method.lower()] = _operation(operation, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgepp", "version": version("edgepp")},
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(operation: Operation, schema: dict[str, Any] | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": "the answer"}, "4XX": {"description": _ERRORS}},
    }
    if names := list(operation.param_convertors):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if schema is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described
