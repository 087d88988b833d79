"""API keys: taken from headers alone, never from the URL, which logs and histories keep."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.errors import EdgeppError
from edgepp.http_api.access.administration import comes_from_here
from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.access.request_head import headers
from edgepp.http_api.api_keys import ApiKey, KeyRing
from edgepp.http_api.failures import RequestError
from edgepp.http_api.page_files import page_files

_OPEN = frozenset({"/", "/health", "/ready"})
"""Paths that need no key: monitors learn from them that the server runs, and nothing of the model."""
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Authentication:
    """Middleware that notes the owner of a request, and whether the owner may change the cluster.

    Refuses requests without a valid key if a key is required.

    ``scope["state"]`` has the name of the key as ``owner``, empty without one, and ``administers``.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, *, required: bool, loopback_administers: bool) -> None:
        """``loopback_administers`` lets requests of this machine itself change the cluster."""
        self._app = app
        self._keys = keys
        self._required = required
        self._loopback_administers = loopback_administers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            key = self._key(scope)
        except EdgeppError as unreadable:
            return await refuse(RequestError("internal", str(unreadable), unreadable.hint), scope, receive, send)
        scope["state"]["owner"] = key.name if key is not None else ""
        if self._required and key is None and not _is_open(scope):
            return await refuse(_no_key(scope), scope, receive, send, _CHALLENGE)
        here = self._loopback_administers and comes_from_here(scope)
        scope["state"]["administers"] = here or (key is not None and key.administers)
        return await self._app(scope, receive, send)

    def _key(self, scope: Scope) -> ApiKey | None:
        found = (self._keys.find(secret) for secret in _secrets(scope))
        return next((key for key in found if key is not None), None)


def _secrets(scope: Scope) -> Iterator[str]:
    for value in headers(scope, "authorization"):
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            yield rest.strip()
        elif scheme.lower() == "basic":
            yield _password(rest.strip())
    yield from headers(scope, "x-api-key")


def _password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _is_open(scope: Scope) -> bool:
    """Whether the request is for a path of monitors, or for the web page, which itself asks for the key."""
    is_open = scope["path"] in _OPEN or scope["path"] in page_files()
    return is_open and scope["method"] in ("GET", "HEAD", "OPTIONS")


def _no_key(scope: Scope) -> RequestError:
    given = any(headers(scope, name) for name in ("authorization", "x-api-key"))
    return RequestError(
        "authentication",
        "this API key is not known here" if given else "an API key is missing",
        "make one with `edgepp keys add NAME`, and send it as `Authorization: Bearer KEY`",
    )
