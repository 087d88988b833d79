"""One HTTP connection: uvicorn's, with a deadline for everything that a client could delay.

A client that closes its sending side has gone: whether it still reads cannot be known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import h11
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from edgepp.http_api.access.request_head import as_ip
from edgepp.http_api.http_options import Limits

_LINGER_S = 5.0
"""Time for the rest of an answer when the connection closes."""
log = logging.getLogger("edgepp.http_api.connection")
log.addHandler(logging.NullHandler())
log.propagate = False  # what a stranger sends must not fill the terminal


class Connection(H11Protocol):
    """A connection that ends when the client is slow, or when there are too many."""

    def __init__(
        self,
        limits: Limits,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger, self.access_log = log, False
        self._limits = limits
        self._deadlines: dict[str, float] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Expect a request, or refuse one connection too many."""
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.write(_plain_error("503 Service Unavailable", "the server has too many connections"))
            transport.close()
        else:
            self._expect("head", self._limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Read on; a head that has begun must end, and so must the body of a request that has its answer."""
        super().data_received(data)
        if self._is_answering:
            self._deadlines.pop("head", None)
            if not self.flow.write_paused:
                self._deadlines.pop("unread", None)
        elif "head" not in self._deadlines:
            in_body = self.conn.their_state is h11.SEND_BODY  # of a request that has its answer
            self._expect("head", self._limits.rest_s if in_body else self._limits.head_s)

    def pause_writing(self) -> None:
        """Expect the client to read."""
        super().pause_writing()
        self._expect("unread", self._limits.unread_s)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._deadlines.pop("unread", None)

    def on_response_complete(self) -> None:
        """Expect the client to read the end of the answer."""
        self._deadlines.pop("head", None)
        self._expect("unread", self._limits.unread_s)
        super().on_response_complete()

    def look(self, now_s: float) -> None:
        """End the connection if the client has missed a deadline. The server calls this once per second."""
        if self.transport.is_closing():
            self._deadlines.setdefault("end", now_s + _LINGER_S)
        if not self.is_sending:
            self._deadlines.pop("unread", None)
        if any(until_s < now_s for until_s in self._deadlines.values()):
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP; in the middle of an answer only the end of the connection can say so."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_plain_error("400 Bad Request", msg))
            self.transport.close()
        else:
            self.transport.abort()
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    @property
    def is_sending(self) -> bool:
        """Whether the client has not taken in all that was sent."""
        return self.transport.get_write_buffer_size() > 0

    @property
    def host(self) -> str:
        """The IP address of the client; empty where it is unknown."""
        return self.client[0] if self.client else ""

    def _is_one_too_many(self) -> bool:
        host, ip = self.host, as_ip(self.host)
        if ip is not None and not ip.is_loopback:
            same = sum(1 for one in self.connections if isinstance(one, Connection) and one.host == host)
            if same > self._limits.num_connections_per_address:
                return True
        return len(self.connections) > self._limits.num_connections

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self, what: str, within_s: float) -> None:
        self._deadlines[what] = time.monotonic() + within_s


def _plain_error(status: str, message: str) -> bytes:
    """A whole response for a client of unknown API."""
    body = msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error"}})
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Retry-After: 1\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
