"""The served model as Anthropic's API describes it, for requests that carry the header of that API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from edgepp.http_api.model_service import ServedModel


def is_anthropics(request: Request) -> bool:
    """Whether a request for models comes from a client of Anthropic's API: the paths are also OpenAI's."""
    return "anthropic-version" in request.headers


def models_page(model: ServedModel) -> dict[str, Any]:
    """The list of all models: the served one."""
    listed = model_info(model, model.name)
    return {"data": [listed], "has_more": False, "first_id": model.name, "last_id": model.name}


def model_info(model: ServedModel, name: str) -> dict[str, Any]:
    """The served model, under one of its names."""
    return {
        "type": "model",
        "id": name,
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created_s, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.context,
        "max_tokens": model.context,
    }
