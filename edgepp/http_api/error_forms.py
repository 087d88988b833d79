"""The form in which errors are told, by the path of the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepp.http_api.endpoint import ErrorForm
from edgepp.http_api.failures import RequestError


def form_of(path: str) -> ErrorForm:
    """The form of errors of the API that ``path`` belongs to; that of OpenAI for paths of no API."""
    return next((form for prefixes, form in _FORMS if path.startswith(prefixes)), _OPENAI)


def _openai(error: RequestError, _: str) -> Mapping[str, Any]:
    kind = {404: "not_found_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    name = kind.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": _sentence(error), "type": name, "param": error.parameter, "code": error.kind}}


def _anthropic(error: RequestError, request_id: str) -> Mapping[str, Any]:
    names = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
    }
    name = names.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": name, "message": _sentence(error)}, "request_id": request_id}


def _ollama(error: RequestError, _: str) -> Mapping[str, Any]:
    return {"error": _sentence(error)}


def _sentence(error: RequestError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


_OPENAI = ErrorForm(lambda error: error.status, _openai)
_FORMS = (
    (("/v1/messages", "/messages"), ErrorForm(lambda error: error.status, _anthropic)),
    (("/api/",), ErrorForm(lambda error: error.status, _ollama)),
)
