"""The names by which clients may call this server.

A page of another site reaches this server under the name of its own site if the site's DNS says so (DNS rebinding);
the ``Host`` header tells. An IP address cannot be rebound, so private ones and those of this machine are allowed.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.cluster.discovery.network_interfaces import usable_addresses
from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.access.request_head import as_ip, headers
from edgepp.http_api.failures import RequestError

_NAMES = frozenset({"localhost", "host.docker.internal"})
_ENDINGS = (".localhost", ".local", ".internal")
"""Names below these never come from the public DNS."""
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([A-Za-z0-9_.-]+))(?::\d{1,5})?", re.ASCII)


class HostNames:
    """The names of this server."""

    def __init__(
        self,
        further: Iterable[str] = (),
        own_name: Callable[[], str] = socket.gethostname,
        own_addresses: Callable[[], Iterable[str]] = usable_addresses,
    ) -> None:
        self._further = frozenset(name.lower() for name in further)
        self._own_name = own_name
        self._own_addresses = own_addresses

    def allows(self, host: str) -> bool:
        """Whether a ``Host`` header, with or without a port, names this server."""
        name = bare(host)
        if name is None:
            return False
        ip = as_ip(name)
        if ip is not None:
            is_near = ip.is_loopback or ip.is_private or ip.is_link_local
            return is_near or any(ip == as_ip(address) for address in self._own_addresses())  # listed only if needed
        return name in _NAMES or name.endswith(_ENDINGS) or name in self._further or name in self._own_names()

    def _own_names(self) -> tuple[str, ...]:
        full = self._own_name().lower()
        return full, full.partition(".")[0]


def is_loopback_name(host: str) -> bool:
    """Whether a ``Host`` header, with or without a port, is ``localhost`` or an address of loopback."""
    name = bare(host)
    ip = as_ip(name) if name else None
    return name == "localhost" or (ip is not None and ip.is_loopback)


def bare(host: str) -> str | None:
    """The host of ``HOST`` or ``HOST:PORT`` in lower case without a final dot; None where it is malformed."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower().removesuffix(".") if match else None


class Hosts:
    """Middleware that refuses requests to other hosts. A request of HTTP/1.0 without ``Host`` comes from no browser."""

    def __init__(self, app: ASGIApp, names: HostNames) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        given = headers(scope, "host")
        if len(given) > 1 or not all(map(self._names.allows, given)):
            error = RequestError(
                "permission",
                "this server is not called by the name in the Host header",
                "use localhost, an address of its machine, or allow the name with `edgepp serve --allow-host NAME`",
            )
            return await refuse(error, scope, receive, send)
        return await self._app(scope, receive, send)
