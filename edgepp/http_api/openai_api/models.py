"""``GET /v1/models`` and ``GET /v1/models/{id}``, in OpenAI's form, and in Anthropic's for its clients."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgepp.http_api.anthropic_api.errors import FORM
from edgepp.http_api.anthropic_api.model_info import is_anthropics, model_info, models_page
from edgepp.http_api.endpoint import Handler, error_response, json_response, request_id
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ModelService, ServedModel
from edgepp.http_api.openai_api.errors import served


def list_models(service: ModelService) -> Handler:
    """The handler of ``/v1/models``."""

    async def handle(request: Request) -> Response:
        if is_anthropics(request.scope):
            return json_response(models_page(service.model))
        return json_response({"object": "list", "data": [model_body(service.model, service.model.name)]})

    return handle


def get_model(service: ModelService) -> Handler:
    """The handler of ``/v1/models/{id}``, for each name of the model."""

    async def handle(request: Request) -> Response:
        name = request.path_params["id"]
        if not is_anthropics(request.scope):
            return json_response(model_body(served(service, name), name))
        try:
            return json_response(model_info(served(service, name), name))
        except RequestError as error:
            return error_response(error, FORM, request_id(request))

    return handle


def model_body(model: ServedModel, name: str) -> dict[str, Any]:
    """One model, under one of its names; clients read the served context by different keys."""
    return {
        "id": name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "edgepp",
        "root": model.name,
        "parent": None,
        "aliases": list(model.names),
        "max_model_len": model.context,
        "context_length": model.context,
        "max_context_length": model.context,
        "loaded_context_length": model.context,
        "context_window": model.context,
        "meta": {
            "n_ctx": model.context,
            "n_ctx_train": model.trained_context,
            "n_embd": model.hidden_size,
            "n_params": model.num_parameters,
            "size": model.size_bytes,
        },
        "capabilities": capabilities(model),
        "status": {"value": model.state},
    }


def capabilities(model: ServedModel) -> list[str]:
    """Abilities of the model."""
    return ["completion", *["tools"] * model.supports_tools, *["thinking"] * model.thinks]
