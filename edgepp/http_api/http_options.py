"""Options of the HTTP server: addresses, whom it admits, and limits."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from edgepp.errors import UsageError
from edgepp.wire.address import Address

HTTP_PORT = 11434
"""The default port, which is Ollama's, so that clients find the server by themselves."""
OFF = "off"
_ORIGIN = re.compile(r"\*|null|file://|[a-z][a-z0-9+.-]*://[^/\s]+", re.ASCII | re.IGNORECASE)
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)
LOOPBACK = ("127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - only with --lan or by an explicit address; keys are demanded then


@dataclass(frozen=True)
class Limits:
    """Limits of the server, per client and for all clients together."""

    head_s: float = 10.0
    """Time for the whole head of a request, and before the first request of a connection."""
    rest_s: float = 60.0
    """Time for the rest of a body after the request was refused."""
    idle_s: int = 30
    """Time that a connection without a request is kept."""
    body_gap_s: float = 20.0
    """Longest pause within a body."""
    body_s: float = 300.0
    """Time for a whole body."""
    unread_s: float = 30.0
    """Time in which a client must read something of an answer that it has let pile up."""
    shutdown_s: float = 2.0
    """Time for running answers when the server closes."""
    head_bytes: int = 64 << 10
    num_headers: int = 100
    body_bytes: int = 32 << 20
    """Largest body of one request."""
    all_bodies_bytes: int = 128 << 20
    """All bodies of requests in flight together."""
    json_levels: int = 128
    json_values: int = 1 << 19
    """Commas, brackets and braces of a body, which bound the objects that its decoding makes."""
    num_connections: int = 512
    num_connections_per_address: int = 256
    """Connections of one other machine; those of this machine have no limit of their own."""
    num_requests_per_owner: int = 256
    """Requests with a body at a time under one API key; without keys, of one address."""


@dataclass(frozen=True)
class HttpOptions:
    """Addresses of the HTTP server, and whom it admits."""

    http: str = ""
    """Host and port, or ``off``: ``HOST:PORT``, a port of loopback as ``PORT`` or ``:PORT``, or a host alone.

    Without a port, the first free one from 11434 on is taken; without a host, loopback.
    """
    lan: bool = False
    """Listen on all addresses. An API key is made if there is none."""
    require_key: bool = False
    """Demand an API key on loopback too."""
    allow_origins: tuple[str, ...] = ()
    """Further origins of web pages that may use the server, like ``https://chat.example``, ``null`` or ``*``."""
    allow_hosts: tuple[str, ...] = ()
    """Further host names of this server, such as that of a reverse proxy."""
    aliases: tuple[str, ...] = ()
    """Further names of the model."""

    def __post_init__(self) -> None:
        if self.lan and self.http == OFF:
            raise UsageError("--lan and --http off exclude each other", "leave one of them out")
        for origin in self.allow_origins:
            if _ORIGIN.fullmatch(origin) is None:
                raise UsageError(
                    f"'{origin:.100}' is no origin of web pages",
                    "write it like https://chat.example, null, file:// or *",
                )
        for host in self.allow_hosts:
            if _HOST_NAME.fullmatch(host) is None:
                raise UsageError(f"'{host:.100}' is no host name", "write it without scheme and port, like llm.example")
        if self.http != OFF:
            self.listen  # noqa: B018 - raises if the address is malformed

    @property
    def on(self) -> bool:
        """Whether there is an HTTP server at all."""
        return self.http != OFF

    @property
    def is_default(self) -> bool:
        """Whether no port was given, so that another one may be taken."""
        return self._host_and_port[1] is None

    @property
    def listen(self) -> tuple[tuple[str, ...], int]:
        """Hosts and port to listen at.

        Raises:
            UsageError: the address is malformed.
        """
        host, port = self._host_and_port
        found = HTTP_PORT if port is None else port
        if host == "*" or self.lan:
            return EVERYWHERE, found
        return LOOPBACK if host in ("", "localhost") else (host,), found

    @property
    def _host_and_port(self) -> tuple[str, int | None]:
        """The host, empty for loopback, and the port, None for the usual one.

        Raises:
            UsageError: the address is malformed.
        """
        text = self.http.strip()
        host = text.removeprefix("[").removesuffix("]")
        is_name = _HOST_NAME.fullmatch(text) is not None and not text.isdecimal()
        if text in ("", "*") or is_name or _is_ip(host):
            return host, None
        port = text.removeprefix(":")
        if port.isdecimal():
            return "", _port(port)
        address = Address.parse(text)
        return "localhost" if text.startswith("localhost:") else address.host, address.port


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if len(text) > 5 or int(text) > 65535:
        raise UsageError(f"{text} is no port", "write HOST:PORT, like 127.0.0.1:8080, or a port up to 65535")
    return int(text)
