"""The web page: ``/`` for browsers, and the files that it loads from ``/web/``.

Clients of Ollama ask for ``/`` too, and look for a line of text; only a client that accepts HTML gets the page.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from edgepp.http_api.access.request_head import headers
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.page_files import PageFile, page_files

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",  # no other code makes markup of text
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked about each time, so that a new file never meets an old one
}


def routes(_service: ModelService) -> list[BaseRoute]:
    """The routes of the page, which precede the routes of Ollama: its ``/`` answers clients that accept no HTML."""
    return [_FileRoute(path, file) for path, file in page_files().items()]


class _FileRoute(Route):
    """One file; ``/`` only for clients that accept HTML."""

    def __init__(self, path: str, file: PageFile) -> None:
        async def send_file(request: Request) -> Response:
            told = {**_HEADERS, "ETag": file.etag, "Vary": "Accept"}
            if _is_known(request.scope, file.etag):
                return Response(status_code=304, headers=told)
            return Response(file.body, headers=told, media_type=file.media_type)

        super().__init__(path, send_file, methods=["GET"], include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for this file."""
        if self.path == "/" and not _accepts_html(scope):
            return Match.NONE, {}
        return super().matches(scope)


def _accepts_html(scope: Scope) -> bool:
    """Whether the client accepts HTML by name; ``*/*`` names no type."""
    ranges = [part.strip().lower() for value in headers(scope, "accept") for part in value.split(",")]
    return any(one.partition(";")[0].strip() in ("text/html", "application/xhtml+xml") for one in ranges)


def _is_known(scope: Scope, etag: str) -> bool:
    """Whether the client says that it has the file with this validator."""
    known = [part.strip() for value in headers(scope, "if-none-match") for part in value.split(",")]
    return "*" in known or any(one.removeprefix("W/") == etag for one in known)
