"""The content types of bodies: uncompressed JSON alone, which a page of another site cannot send without asking."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.access.request_head import METHODS_WITH_BODY, has_body, header, is_from_this_machine
from edgepp.http_api.failures import RequestError

_JSON = "application/json"
_CURL = frozenset({"application/x-www-form-urlencoded", ""})
"""Content types of `curl -d`, as in Ollama's documentation: that of a form, or none."""
_SENT_BY_BROWSERS = ("origin", "sec-fetch-site", "sec-fetch-mode", "referer")


class ContentTypes:
    """Middleware that refuses bodies that are compressed or not declared as JSON.

    On /api/, what `curl -d` on this machine sends counts as JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in METHODS_WITH_BODY or not has_body(scope):
            return await self._app(scope, receive, send)
        coding = (header(scope, "content-encoding") or "").strip().lower()
        if coding not in ("", "identity"):
            error = RequestError(
                "unsupported_media_type",
                f"a body in the encoding {coding[:80]} is not read here",
                "send the JSON uncompressed, without the header Content-Encoding",
            )
            return await refuse(error, scope, receive, send, {"Accept-Encoding": "identity"})
        kind = (header(scope, "content-type") or "").partition(";")[0].strip().lower()
        if kind == _JSON or (kind in _CURL and _is_curl(scope)):
            return await self._app(scope, receive, send)
        error = RequestError(
            "unsupported_media_type",
            f"a body of type {kind[:80]} is not read here" if kind else "the body has no type",
            "send JSON with the header `Content-Type: application/json`",
        )
        return await refuse(error, scope, receive, send)


def _is_curl(scope: Scope) -> bool:
    browser = any(header(scope, name) is not None for name in _SENT_BY_BROWSERS)
    return scope["path"].startswith("/api/") and is_from_this_machine(scope) and not browser
