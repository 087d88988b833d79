"""The routes of Ollama's API, at the root and below the wrong bases that people give their clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api.endpoint import endpoint
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.ollama_api import models
from edgepp.http_api.ollama_api.chat import chat
from edgepp.http_api.ollama_api.errors import FORM
from edgepp.http_api.ollama_api.generate import generate

ServiceHandler: TypeAlias = Callable[[ModelService, Request], Awaitable[Response]]

_ROUTES: tuple[tuple[str, str, ServiceHandler], ...] = (
    ("GET", "/", models.root),
    ("GET", "/api/version", models.version),
    ("GET", "/api/tags", models.tags),
    ("GET", "/api/ps", models.ps),
    ("POST", "/api/show", models.show),
    ("POST", "/api/chat", chat),
    ("POST", "/api/generate", generate),
    ("POST", "/api/pull", models.pull),
    ("POST", "/api/embed", models.unsupported),
    ("POST", "/api/embeddings", models.unsupported),
    ("POST", "/api/create", models.unsupported),
    ("POST", "/api/copy", models.unsupported),
    ("POST", "/api/push", models.unsupported),
    ("DELETE", "/api/delete", models.unsupported),
    ("POST", "/api/blobs/{digest}", models.unsupported),
    ("HEAD", "/api/blobs/{digest}", models.unsupported),
)
"""Method, path and handler; starlette answers HEAD wherever there is GET."""
_WRONG_BASES = ("/ollama/api/api", "/ollama/api", "/api/v1/api")


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes of Ollama's API over ``service``."""
    right: list[BaseRoute] = [
        Route(path, endpoint(partial(handler, service), FORM), methods=[method]) for method, path, handler in _ROUTES
    ]
    rewritten = _Rewritten(Router(right))
    wrong = [Route(f"{base}/{{rest:path}}", rewritten, include_in_schema=False) for base in _WRONG_BASES]
    return [*right, *wrong]


class _Rewritten:
    """Sends a request below a wrong base to the route that its client means."""

    def __init__(self, router: ASGIApp) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = f"/api/{scope['path_params']['rest']}"
        await self._router({**scope, "path": path, "raw_path": path.encode(), "root_path": ""}, receive, send)
