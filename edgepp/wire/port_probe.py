"""Whether the system at an address says that no program listens there, asked without waiting."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from edgepp.wire.address import Address


class PortProbe:
    """One attempt to connect over TCP; nothing is sent over the connection."""

    def __init__(self, address: Address) -> None:
        """Begin to connect to ``address``; a host that is a name, not an IP address, is never found refusing."""
        self._error = 0
        self._socket: socket.socket | None = None
        with suppress(OSError):  # no IP address, or no descriptor: nothing is known then
            family, _, _, _, target = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )[0]
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._error = self._socket.connect_ex(target)

    @property
    def refused(self) -> bool:
        """Whether the connection was refused so far. Does not block."""
        if self._socket is not None and self._error != errno.ECONNREFUSED:
            self._error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._error
        return self._error == errno.ECONNREFUSED

    @property
    def connected(self) -> bool:
        """Whether the connection was made so far: a program listens, though it may hang. Does not block."""
        with suppress(OSError):
            return self._socket is not None and bool(self._socket.getpeername())
        return False

    def close(self) -> None:
        """Give up the attempt."""
        if self._socket is not None:
            self._socket.close()
