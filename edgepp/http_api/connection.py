"""One HTTP connection: uvicorn's, with a deadline for everything that a client could delay.

A client that closes its sending side has gone: whether it still reads cannot be known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any

import h11
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from edgepp.http_api.access.request_head import as_ip
from edgepp.http_api.access.request_ids import RESPONSE_HEADERS, new_request_id
from edgepp.http_api.failures import RequestError
from edgepp.http_api.http_options import Limits
from edgepp.http_api.openai_api.errors import error_body
from edgepp.http_api.strict_http import StrictHttp

_LINGER_S = 5.0
"""Time for the rest of an answer when the connection closes."""
_BUSY_S = 1.0
_EARLY_BYTES = 1 << 16
"""Bytes of further requests that are taken during an answer."""
_REFUSED_SHARE = 2
"""Connections, refused ones among them, as a multiple of the limit, from which on refused ones are closed at once."""
log = logging.getLogger("edgepp.http_api.connection")
log.addHandler(logging.NullHandler())
log.propagate = False  # what a stranger sends must not fill the terminal


class HttpConnection(H11Protocol):
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
        self.conn: StrictHttp = StrictHttp(h11.SERVER, limits.head_bytes)
        self.logger, self.access_log = log, False
        self._limits = limits
        self._deadlines: dict[str, float] = {}
        self.is_refused = False
        """Whether no further request is read, and what still comes is dropped."""
        self._dropped_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Expect a request, or refuse one connection too many."""
        super().connection_made(transport)
        if self._is_one_too_many():
            busy = RequestError("overloaded", "the server has too many connections", "try again", retry_after_s=_BUSY_S)
            self._refuse(busy)
        else:
            self._expect("head", self._limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Read on; a head that has begun must end, and so must the body of a request that has its answer."""
        if self.is_refused:
            self._drop(len(data))
        else:
            super().data_received(data)
            self._keep_reading()
            self._expect_more()

    def _keep_reading(self) -> None:
        """Read on during an answer, which shows when the client goes.

        uvicorn stops to read where the next request has come before the answer to the one before it.
        """
        is_early = self.flow.read_paused and self.conn.their_state is h11.DONE
        if is_early and len(self.conn.trailing_data[0]) <= _EARLY_BYTES:
            self.flow.resume_reading()

    def _expect_more(self) -> None:
        if self.is_refused:
            return
        if self._is_answering:
            self._deadlines.pop("head", None)
            if not self.flow.write_paused:
                self._deadlines.pop("unread", None)
        elif "head" not in self._deadlines:
            in_body = self.conn.their_state is h11.SEND_BODY  # of a request that has its answer
            self._expect("head", self._limits.rest_s if in_body else self._limits.head_s)

    def shutdown(self) -> None:
        """End the connection when its answer ends, or now."""
        if self.is_refused:
            self.transport.close()
        else:
            super().shutdown()

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
        self._keep_reading()

    def look(self, now_s: float) -> None:
        """End the connection if the client has missed a deadline. The server calls this once per second."""
        if self.transport.is_closing():
            self._deadlines.setdefault("end", now_s + _LINGER_S)
        if not self.is_sending:
            self._deadlines.pop("unread", None)
        if any(until_s < now_s for until_s in self._deadlines.values()):
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's sentence is the same for all
        """Refuse bytes that are not HTTP; in the middle of an answer only the end of the connection can say so."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(RequestError("invalid_request", self.conn.fault or "these bytes are no HTTP request"))
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
        others = [one for one in self.connections if isinstance(one, HttpConnection) and not one.is_refused]
        if ip is not None and not ip.is_loopback:
            same = sum(1 for one in others if one.host == host)
            if same > self._limits.num_connections_per_address:
                return True
        return len(others) > self._limits.num_connections

    def _refuse(self, error: RequestError) -> None:
        """Send ``error`` and the end; then drop what comes, since closing at once would reset the connection."""
        self.is_refused = True
        self._deadlines.clear()
        self._expect("end", _LINGER_S)
        self.transport.write(_plain_error(error))
        if len(self.connections) > _REFUSED_SHARE * self._limits.num_connections:
            self.transport.close()
        else:
            self.transport.write_eof()

    def _drop(self, num_bytes: int) -> None:
        self._dropped_bytes += num_bytes
        if self._dropped_bytes > self._limits.body_bytes:
            self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self, what: str, within_s: float) -> None:
        self._deadlines[what] = time.monotonic() + within_s


def _plain_error(error: RequestError) -> bytes:
    """A whole response for a client of unknown API."""
    body = msgspec.json.encode(error_body(error))
    request_id = new_request_id()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *((name.decode(), request_id) for name in RESPONSE_HEADERS),
    ]
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(round(error.retry_after_s))))
    status = HTTPStatus(error.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode() + body
