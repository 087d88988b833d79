"""``/health`` and ``/ready``: whether the cluster can answer now; if not, reason, progress and time left."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.http_api.access.request_head import is_from_this_machine
from edgepp.http_api.endpoint import json_response, owner
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.errors import FORM
from edgepp.http_api.operation import Operation

_RETRY_S = 5


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes over ``service``."""

    async def health(request: Request) -> Response:
        body = health_of(service)
        loading = body.get("loading")
        if not owner(request) and not is_from_this_machine(request.scope):
            body = {"status": body["status"]}  # a monitor without a key learns nothing of model and machines
        if loading is None:
            return json_response(body)
        eta_s = loading["eta_seconds"]
        return json_response(body, 503, {"Retry-After": str(max(1, round(_RETRY_S if eta_s is None else eta_s)))})

    return [
        Operation("GET", path, health, FORM, summary="Whether the cluster can answer now.")
        for path in ("/health", "/ready")
    ]


def health_of(service: ModelService) -> dict[str, Any]:
    """The state of the cluster in a few words; with ``loading`` while it cannot answer."""
    state = service.status()
    name = service.model.name
    loading = state.get("loading")
    if not loading:
        return {"status": "ok", "model": name}
    return {
        "status": loading["state"],
        "model": name,
        "reason": state.get("reason", ""),
        "loading": {"model": name, **loading},
    }
