"""TCP addresses of listeners, as people and messages write them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from edgepp.errors import UsageError
from edgepp.wire.text_fields import host_and_port


@dataclass(frozen=True)
class Address:
    """TCP host and port. Port 0 lets the system choose; host ``*`` listens on every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``*:PORT``.

        Raises:
            UsageError: The text is no address.
        """
        parsed = host_and_port(text.strip())
        if parsed is None:
            raise UsageError(f"'{text}' is not an address", "write HOST:PORT, like 192.168.1.20:5720")
        host, port = parsed
        return cls("127.0.0.1" if host == "localhost" else host, port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host.split("%")[0]).is_loopback
        except ValueError:
            return False

    @property
    def endpoint(self) -> str:
        """The address as ZeroMQ writes it."""
        return f"tcp://{self}"
