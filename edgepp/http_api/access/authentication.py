"""API keys: taken from headers alone, never from the URL, which logs and histories keep."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.errors import EdgeppError
from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.access.request_head import header, headers, is_from_this_machine
from edgepp.http_api.api_keys import KeyRing
from edgepp.http_api.failures import RequestError

_OPEN = frozenset({"/", "/health", "/ready"})
"""What monitors ask without a key: that the server runs, and nothing of the model."""
_CHANGES = frozenset({"/v1/models/load", "/models/load"})
"""What changes the cluster for everybody."""
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Authentication:
    """Sets ``scope["state"]["owner"]`` to the name of the key, empty without one; refuses strangers if a key is due."""

    def __init__(self, app: ASGIApp, keys: KeyRing, *, required: bool) -> None:
        self._app = app
        self._keys = keys
        self._required = required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            owner = scope["state"]["owner"] = self._owner(scope)
        except EdgeppError as unreadable:
            return await refuse(RequestError("internal", str(unreadable), unreadable.hint), scope, receive, send)
        if self._required and not owner and not _is_open(scope):
            return await refuse(_no_key(scope), scope, receive, send, _CHALLENGE)
        if scope["path"] in _CHANGES and not owner and not _is_local(scope):
            error = RequestError("permission", "this needs an API key", "make one with `edgepp keys add NAME`")
            return await refuse(error, scope, receive, send)
        return await self._app(scope, receive, send)

    def _owner(self, scope: Scope) -> str:
        found = (self._keys.owner(secret) for secret in _secrets(scope))
        return next((name for name in found if name is not None), "")


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
    return scope["path"] in _OPEN and scope["method"] in ("GET", "HEAD", "OPTIONS")


def _is_local(scope: Scope) -> bool:
    """Whether the client is on this machine; a proxy on this machine says for whom it asks."""
    return is_from_this_machine(scope) and all(header(scope, name) is None for name in _FORWARDED)


def _no_key(scope: Scope) -> RequestError:
    given = any(headers(scope, name) for name in ("authorization", "x-api-key"))
    return RequestError(
        "authentication",
        "this API key is not known here" if given else "an API key is missing",
        "make one with `edgepp keys add NAME`, and send it as `Authorization: Bearer KEY`",
    )
