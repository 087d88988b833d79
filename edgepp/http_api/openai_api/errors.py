"""Errors in the form of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edgepp.http_api.endpoint import ErrorForm
from edgepp.http_api.failures import FailureKind, RequestError
from edgepp.http_api.model_service import ModelService, ServedModel

_TYPE_AND_CODE: dict[FailureKind, tuple[str, str | None]] = {
    "invalid_request": ("invalid_request_error", None),
    "context_length_exceeded": ("invalid_request_error", "context_length_exceeded"),
    "unsupported_content": ("invalid_request_error", "unsupported_content"),
    "authentication": ("authentication_error", "invalid_api_key"),
    "permission": ("permission_error", "permission_denied"),
    "not_found": ("invalid_request_error", "not_found"),
    "method_not_allowed": ("invalid_request_error", "method_not_allowed"),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "unsupported_media_type": ("invalid_request_error", "unsupported_media_type"),
    "rate_limited": ("rate_limit_error", "rate_limit_exceeded"),
    "internal": ("server_error", None),
    "not_implemented": ("invalid_request_error", "not_implemented"),
    "loading": ("model_loading", "model_loading"),
    "overloaded": ("server_error", "overloaded"),
    "stopped": ("server_error", "stopped"),
}


def error_form(service: ModelService | None = None) -> ErrorForm:
    """The form of OpenAI's errors; with ``service``, ``loading`` tells the progress of the load."""

    def body(error: RequestError, _: str) -> Mapping[str, Any]:
        return error_body(error, service)

    return ErrorForm(status=lambda error: error.status, body=body)


FORM = error_form()


def error_body(error: RequestError, service: ModelService | None = None) -> dict[str, Any]:
    """The JSON object for ``error``."""
    kind, code = _TYPE_AND_CODE[error.kind]
    if error.kind == "not_found" and error.parameter == "model":
        code = "model_not_found"
    told: dict[str, Any] = {
        "error": {"message": _sentence(error), "type": kind, "param": error.parameter, "code": code}
    }
    if error.kind == "loading" and service is not None:
        told["loading"] = _loading(error, service)
    return told


def in_band_error(error: RequestError) -> bytes:
    """The last frames of a stream that fails."""
    return b"data: " + msgspec.json.encode(error_body(error)) + b"\n\ndata: [DONE]\n\n"


def served(service: ModelService, name: str | None) -> ServedModel:
    """The served model.

    Raises:
        RequestError: no such model is served; ``model`` is named as the parameter that is wrong.
    """
    try:
        return service.served(name)
    except RequestError as error:
        error.parameter = error.parameter or "model"
        raise


def _sentence(error: RequestError) -> str:
    sentence = str(error)
    if error.kind == "context_length_exceeded" and error.prompt_tokens is not None and error.context is not None:
        # Clients look for the first words, and shorten the conversation.
        sentence = (
            f"This model's maximum context length is {error.context} tokens, "
            f"and the prompt has {error.prompt_tokens} tokens"
        )
    return f"{sentence} ({error.hint})" if error.hint else sentence


def _loading(error: RequestError, service: ModelService) -> dict[str, Any]:
    loading = service.status().get("loading")
    if loading is None:  # the model has become ready since, or nothing is known yet
        state = service.model.state
        progress = 1.0 if state == "loaded" else 0.0
        loading = {"state": state, "node": None, "progress": progress, "eta_seconds": error.retry_after_s}
    return {"model": service.model.name, **loading}
