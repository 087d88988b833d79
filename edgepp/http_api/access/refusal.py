"""Refusal of a request by a middleware, in the error form of the API that the path belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from edgepp.http_api.endpoint import error_response
from edgepp.http_api.error_forms import form_of
from edgepp.http_api.failures import RequestError

CLOSE = {"Connection": "close"}


async def refuse(
    error: RequestError, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str] | None = None
) -> None:
    """Send the response that tells of ``error``."""
    response = error_response(error, form_of(scope), str(scope.get("state", {}).get("request_id", "")))
    response.headers.update(headers or {})
    await response(scope, receive, send)
