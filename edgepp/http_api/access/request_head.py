"""Reading the head of a request from its ASGI scope."""

from __future__ import annotations

import ipaddress

from starlette.types import Scope

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def headers(scope: Scope, name: str) -> list[str]:
    """All values of the header ``name``, given in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()]


def header(scope: Scope, name: str) -> str | None:
    """The first value of the header ``name``, given in lower case; None without one."""
    return next(iter(headers(scope, name)), None)


def has_body(scope: Scope) -> bool:
    """Whether a body is announced."""
    return header(scope, "transfer-encoding") is not None or header(scope, "content-length") not in (None, "0")


def as_ip(text: str) -> IpAddress | None:
    """An IP address, where ``text`` is one; an IPv4 address in IPv6 form as IPv4."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if ip.version == 6 else None
    return mapped or ip


def client_host(scope: Scope) -> str:
    """The IP address of the client; empty where it is unknown."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def is_from_this_machine(scope: Scope) -> bool:
    """Whether the connection comes from a loopback address."""
    ip = as_ip(client_host(scope))
    return ip is not None and ip.is_loopback
