"""Permission to change the cluster over HTTP: invite a machine, drain a node, change the model.

Reading needs what every request needs. A change needs a key that was made with `edgepp keys add NAME --admin`; or it
comes from this machine itself: over loopback, under a name of loopback, through no proxy that says so, and from no web
page but this server's own. `edgepp serve --require-key` leaves the keys alone.
"""

from __future__ import annotations

from starlette.types import Scope

from edgepp.http_api.access.hosts import is_loopback_name
from edgepp.http_api.access.request_head import header, headers, is_from_this_machine

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_OWN_PAGE = (None, "same-origin", "none")
"""Values of ``Sec-Fetch-Site`` of programs that are no browser, of this server's own page, and of an address bar."""


def comes_from_here(scope: Scope) -> bool:
    """Whether a request comes from this machine's own loopback, and not from a page of another origin."""
    hosts = headers(scope, "host")
    if not is_from_this_machine(scope) or any(header(scope, name) is not None for name in _FORWARDED):
        return False
    if len(hosts) > 1 or not all(map(is_loopback_name, hosts)):
        return False
    origins = headers(scope, "origin")
    own = f"http://{hosts[0]}".lower() if hosts else ""
    return header(scope, "sec-fetch-site") in _OWN_PAGE and all(origin.lower() == own for origin in origins)
