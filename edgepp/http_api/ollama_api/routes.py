"""The routes of Ollama's API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

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


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes of Ollama's API over ``service``."""
    return [
        Operation(method, path, partial(handler, service), FORM, summary=summary, body=body)
        for method, path, handler, summary, body in _OPERATIONS
    ]
