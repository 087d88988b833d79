"""The served model as Anthropic's API describes it, for requests that carry the header of that API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

from edgepp.http_api.model_service import ServedModel


def is_anthropics(scope: Scope) -> bool:
    """Whether a request comes from a client of Anthropic's API, where the path does not tell."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


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
