"""Paths as clients write them: whole URLs, double and trailing slashes, and the bases of other servers."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile("/{2,}")
_URL = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
_WRONG_BASE = re.compile(r"(?:/(?:ollama|openai|anthropic|api|v1))*(?=/(?:api|v1)/)|/(?:ollama|openai|anthropic)(?=/)")
"""Bases of other servers, as in ``/api/v1`` or ``/openai/v1``, and bases whose ending the client adds once more."""


class Paths:
    """Middleware that rewrites ``scope["path"]``; host and port of a whole URL, as of a proxy, become the header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope = _without_authority(scope)
        await self._app({**scope, "path": plain(scope["path"])}, receive, send)


def _without_authority(scope: Scope) -> Scope:
    """The same request with a path in place of a URL, whose authority counts and not ``Host`` (RFC 9112, 3.2.2)."""
    match = _URL.fullmatch(scope.get("raw_path") or b"")
    if match is None:
        return scope
    raw_path = match[2] or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "raw_path": raw_path,
        "path": unquote(raw_path.decode("ascii")),
        "headers": [(b"host", match[1]), *headers],
    }


def plain(path: str) -> str:
    """``path`` in the form in which routes are declared."""
    path = _SLASHES.sub("/", path)
    base = _WRONG_BASE.match(path)
    return (path[base.end() :] if base else path).rstrip("/") or "/"
