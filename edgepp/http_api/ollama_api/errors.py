"""Errors in the form of Ollama's API: one sentence, in ``{"error": "…"}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepp.http_api.endpoint import ErrorForm
from edgepp.http_api.failures import RequestError
from edgepp.http_api.ollama_api.ndjson import line


def sentence(error: RequestError) -> str:
    """The message of ``error`` with its hint, on one line."""
    return f"{error}; {error.hint}" if error.hint else str(error)


def _body(error: RequestError, _request_id: str) -> Mapping[str, Any]:
    return {"error": sentence(error)}


def in_band(error: RequestError) -> bytes:
    """The last line of a stream that fails."""
    return line({"error": sentence(error)})


FORM = ErrorForm(status=lambda error: error.status, body=_body)
