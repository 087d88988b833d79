"""The routes of Ollama's API, at the root and below the wrong bases that people give their clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from edgepp.http_api.endpoint import error_response, request_id
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.ollama_api import models
from edgepp.http_api.ollama_api.chat import ChatRequest, chat
from edgepp.http_api.ollama_api.errors import FORM
from edgepp.http_api.ollama_api.generate import GenerateRequest, generate
from edgepp.http_api.ollama_api.models import ModelRequest
from edgepp.http_api.operation import Operation

ServiceHandler: TypeAlias = Callable[[ModelService, Request], Awaitable[Response]]

_OPERATIONS: tuple[tuple[str, str, ServiceHandler, str, Any], ...] = (
    ("GET", "/", models.root, "whether the server runs", None),
    ("GET", "/api/version", models.version, "version of Ollama's API", None),
    ("GET", "/api/tags", models.tags, "models that there are", None),
    ("GET", "/api/ps", models.ps, "models that are loaded", None),
    ("POST", "/api/show", models.show, "details of a model", ModelRequest),
    ("POST", "/api/chat", chat, "answer to a conversation", ChatRequest),
    ("POST", "/api/generate", generate, "answer to a prompt", GenerateRequest),
    ("POST", "/api/pull", models.pull, "success for the model that is there", ModelRequest),
    ("POST", "/api/embed", models.unsupported, "not implemented", None),
    ("POST", "/api/embeddings", models.unsupported, "not implemented", None),
    ("POST", "/api/create", models.unsupported, "not allowed", None),
    ("POST", "/api/copy", models.unsupported, "not allowed", None),
    ("POST", "/api/push", models.unsupported, "not allowed", None),
    ("DELETE", "/api/delete", models.unsupported, "not allowed", None),
    ("POST", "/api/blobs/{digest}", models.unsupported, "not allowed", None),
    ("HEAD", "/api/blobs/{digest}", models.unsupported, "not allowed", None),
)
"""Method, path, handler, summary and type of the body; starlette answers HEAD wherever there is GET."""
_WRONG_BASES = ("/ollama/api/api", "/ollama/api", "/api/v1/api")


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes of Ollama's API over ``service``."""
    right = [
        Operation(method, path, partial(handler, service), FORM, summary=summary, body=body)
        for method, path, handler, summary, body in _OPERATIONS
    ]
    rewritten = _Rewritten(right)
    wrong = [Route(f"{base}/{{rest:path}}", rewritten, include_in_schema=False) for base in _WRONG_BASES]
    return [*right, *wrong]


class _Rewritten:
    """An application that sends a request below a wrong base to the route that its client means."""

    def __init__(self, right: list[Operation]) -> None:
        self._right = right

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = f"/api/{scope['path_params']['rest']}"
        meant = {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "path_params": {}}
        for route in self._right:
            match, found = route.matches(meant)
            if match == Match.FULL:
                return await route.handle({**meant, **found}, receive, send)
        error = RequestError("not_found", f"there is no {scope['path']} here, and no {path}")
        return await error_response(error, FORM, request_id(Request(scope)))(scope, receive, send)
