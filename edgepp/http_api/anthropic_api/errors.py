"""Anthropic's form of an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepp.http_api.endpoint import ErrorForm
from edgepp.http_api.failures import FailureKind, RequestError

_TYPES: dict[FailureKind, str] = {
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "request_too_large": "request_too_large",
    "rate_limited": "rate_limit_error",
    "internal": "api_error",
    "not_implemented": "api_error",
    "loading": "overloaded_error",
    "overloaded": "overloaded_error",
    "stopped": "overloaded_error",
}
"""The API's name of each kind; ``invalid_request_error`` for all others."""

_OVERLOADED = 529
"""The API's own status for a server with too much to do."""


def status(error: RequestError) -> int:
    """The HTTP status of ``error``."""
    return _OVERLOADED if error.kind == "overloaded" else error.status


def body(error: RequestError, request: str) -> Mapping[str, Any]:
    """The JSON object that says that the request with the id ``request`` failed."""
    named = {"type": _TYPES.get(error.kind, "invalid_request_error"), "message": _sentence(error)}
    return {"type": "error", "error": named, "request_id": request or None}


def _sentence(error: RequestError) -> str:
    if error.kind == "context_length_exceeded" and error.prompt_tokens is not None and error.context is not None:
        # Claude Code looks for this sentence, and then compacts the conversation.
        return f"prompt is too long: {error.prompt_tokens} tokens > {error.context} maximum"
    return f"{error}; {error.hint}" if error.hint else str(error)


def invalid(parameter: str, sentence: str, hint: str) -> RequestError:
    """The error for a field of the body that is wrong."""
    return RequestError("invalid_request", f"{parameter}: {sentence}", hint, parameter=parameter)


FORM = ErrorForm(status, body)
