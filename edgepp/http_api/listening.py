"""The sockets at which the HTTP server listens."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from edgepp.errors import UsageError
from edgepp.http_api.http_options import HTTP_PORT, LOOPBACK, HttpOptions
from edgepp.wire.address import Address

_TRIED_PORTS = 20
_BACKLOG = 128
_SEND_BUFFER_BYTES = 256 << 10  # else the kernel keeps several MB for each client that does not read
_PROBE_S = 0.2


@dataclass(frozen=True)
class Listening:
    """Sockets of one port, and the port that another program holds where this one was taken in its place."""

    sockets: tuple[socket.socket, ...]
    taken_port: int | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Addresses at which the sockets listen."""
        return tuple(Address(*one.getsockname()[:2]) for one in self.sockets)

    def close(self) -> None:
        """Stop listening."""
        for one in self.sockets:
            one.close()


def listen(options: HttpOptions) -> Listening:
    """Listen where ``options`` say; if they name no port, at the first free one from 11434 on.

    Raises:
        UsageError: the address is taken, or not one of this machine.
    """
    hosts, port = options.listen
    if not options.is_default:
        return Listening(_bound(hosts, port))
    for tried in (*range(port, port + _TRIED_PORTS), 0):
        if tried and _answers(tried):
            continue
        try:
            return Listening(_bound(hosts, tried), None if tried == port else HTTP_PORT)
        except UsageError as error:
            if not _is_taken(error.__cause__):
                raise
    raise UsageError("no port is free for the HTTP server", "give one with --http HOST:PORT, or use --http off")


def _answers(port: int) -> bool:
    """Whether a program listens on all addresses at ``port``: macOS lets another one bind the loopback address too."""
    with suppress(OSError), socket.create_connection((LOOPBACK[0], port), _PROBE_S):
        return True
    return False


def _bound(hosts: Sequence[str], port: int) -> tuple[socket.socket, ...]:
    """A socket for the first host, and for the other hosts where this machine has such addresses.

    One version of IP may be missing here. With port 0, the port of the first host may be taken at the other hosts.
    """
    found: list[socket.socket] = []
    is_given = port != 0
    try:
        for host in hosts:
            try:
                found.append(_socket(host, port))
            except OSError as error:
                if not found or (is_given and _is_taken(error)):
                    raise _refused(Address(host, port), error) from error
            port = found[0].getsockname()[1]
    except BaseException:
        for one in found:
            one.close()
        raise
    return tuple(found)


def _socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # accepted connections inherit it
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(_BACKLOG)  # at once: an address that is only bound can be bound again
    except BaseException:
        one.close()
        raise
    return one


def _is_taken(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)


def _refused(address: Address, error: OSError) -> UsageError:
    if _is_taken(error):
        hint = "choose another port with --http HOST:PORT, or leave --http out"
    else:
        hint = "give an address of this machine, which `edgepp doctor` lists, or use --lan for all of them"
    return UsageError(f"cannot serve HTTP on {address}: {error.strerror or error}", hint)
