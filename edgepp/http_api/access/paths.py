"""Paths as clients write them: double and trailing slashes, and prefixes given twice."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile("/{2,}")
_PREFIXES = (
    ("/v1/v1/", "/v1/"),  # a base URL that ends in /v1, for a client that adds it
    ("/v1/api/", "/api/"),
)


class Paths:
    """Rewrites ``scope["path"]``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app({**scope, "path": plain(scope["path"])}, receive, send)


def plain(path: str) -> str:
    """``path`` as routes write it."""
    path = _SLASHES.sub("/", path)
    for prefix, meant in _PREFIXES:
        if path.startswith(prefix):
            path = meant + path.removeprefix(prefix)
    return path.rstrip("/") or "/"
