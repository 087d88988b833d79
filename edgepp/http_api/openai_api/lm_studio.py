"""``GET /api/v0/models`` in the form of LM Studio, which Cline and plugins of opencode read."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.endpoint import Handler, json_response
from edgepp.http_api.model_service import ModelService, ServedModel
from edgepp.http_api.openai_api.errors import served


def list_models(service: ModelService) -> Handler:
    """The handler of ``/api/v0/models``."""

    async def handle(_: Request) -> Response:
        return json_response({"object": "list", "data": [_model(service.model, service.model.name)]})

    return handle


def get_model(service: ModelService) -> Handler:
    """The handler of ``/api/v0/models/{id}``, for each name of the model."""

    async def handle(request: Request) -> Response:
        name = request.path_params["id"]
        return json_response(_model(served(service, name), name))

    return handle


def _model(model: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "type": "llm",
        "publisher": "edgepp",
        "arch": model.family,
        "compatibility_type": "safetensors",
        "quantization": model.quantization,
        "state": "loaded" if model.state == "loaded" else "not-loaded",
        "max_context_length": model.context,
        "loaded_context_length": model.context,
        "capabilities": ["tool_use"] * model.supports_tools,
    }
