"""The web pages and desktop programs whose scripts may use this server, and the headers that allow it (CORS)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepp.http_api.access.hosts import bare, is_loopback_name
from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.access.request_head import header, headers
from edgepp.http_api.failures import RequestError

_PROGRAMS = frozenset({"vscode-webview", "vscode-file", "app", "tauri", "chrome-extension"})
"""Schemes of installed programs, which are allowed with any host behind the scheme."""
_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_ASKED_HEADERS = frozenset(
    {
        "accept",
        "authorization",
        "content-type",
        "user-agent",
        "x-api-key",
        "anthropic-version",
        "anthropic-beta",
        "anthropic-dangerous-direct-browser-access",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "x-request-id",
        "x-requested-with",
    }
)
_STAINLESS = re.compile(r"x-stainless-[a-z0-9-]{1,64}")
_TOLD_HEADERS = "x-request-id, request-id, retry-after, retry-after-ms"
_MAX_AGE_S = "600"


class OriginNames:
    """The allowed origins."""

    def __init__(self, further: Iterable[str] = ()) -> None:
        self._further = frozenset(map(str.lower, further))

    def allows(self, origin: str, host: str | None) -> bool:
        """Whether ``origin`` may use the server that is called ``host``, as in the headers of these names."""
        origin = origin.lower()
        if origin in self._further or "*" in self._further:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme in _PROGRAMS:
            return True
        if parts.scheme == "file":
            return "file://" in self._further
        if parts.scheme not in ("http", "https"):
            return False
        return parts.netloc == (host or "").lower() or _is_loopback(parts.netloc)


def _is_loopback(host: str) -> bool:
    return is_loopback_name(host) or (bare(host) or "").endswith(".localhost")


class Origins:
    """Middleware that refuses scripts of other origins, answers preflights, and lets allowed origins read responses."""

    def __init__(self, app: ASGIApp, names: OriginNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        origins, host = headers(scope, "origin"), header(scope, "host")
        if not origins:
            if header(scope, "sec-fetch-site") == "cross-site":
                return await refuse(_REFUSED, scope, receive, send)
            return await self._app(scope, receive, _telling(send, None))
        if len(origins) > 1 or not self._names.allows(origins[0], host):
            return await refuse(_REFUSED, scope, receive, _telling(send, None))
        if scope["method"] == "OPTIONS" and header(scope, "access-control-request-method"):
            return await _preflight(scope)(scope, receive, _telling(send, origins[0]))
        return await self._app(scope, receive, _telling(send, origins[0]))


_REFUSED = RequestError(
    "permission",
    "pages of this origin may not use this server",
    "allow the origin with `edgepp serve --allow-origin ORIGIN`",
)


def _preflight(scope: Scope) -> Response:
    asked = [name.strip().lower() for name in ",".join(headers(scope, "access-control-request-headers")).split(",")]
    allowed = [name for name in asked if name in _ASKED_HEADERS or _STAINLESS.fullmatch(name)]
    told = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": ", ".join(allowed),
        "Access-Control-Max-Age": _MAX_AGE_S,
    }
    if header(scope, "access-control-request-private-network") == "true":
        told["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=told)


def _telling(send: Send, origin: str | None) -> Send:
    async def send_with_origin(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": list(message.get("headers", ()))}
            told = MutableHeaders(raw=message["headers"])
            told.add_vary_header("Origin")
            if origin is not None:
                told["Access-Control-Allow-Origin"] = origin
                told["Access-Control-Expose-Headers"] = _TOLD_HEADERS
        await send(message)

    return send_with_origin
