"""Deadlines and numbers of connections, without sockets and clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from edgepp.http_api.connection import HttpConnection
from edgepp.http_api.http_options import Limits
from tests.builders.asgi import Echo
from tests.builders.raw_http import request

LATER_S = 1000.0


class _Transport:
    """The other side of a connection: what was written, and whether the connection has ended."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.written = b""
        self.unread = 0
        self.closing = self.aborted = self.ended = False

    def get_extra_info(self, name: str) -> Any:
        return {"peername": (self.host, 50000), "sockname": ("127.0.0.1", 11434)}.get(name)

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def write_eof(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def pause_reading(self) -> None:
        return

    resume_reading = pause_reading


class _Server:
    """Makes connections."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = ServerState()
        self._config = Config(
            Echo(), lifespan="off", ws="none", log_config=None, interface="asgi3", proxy_headers=False
        )

    def end(self) -> None:
        """Tell all connections that they have ended."""
        for connection in list(self._state.connections):
            connection.connection_lost(None)

    def connect(self, host: str = "127.0.0.1") -> tuple[HttpConnection, _Transport]:
        connection = HttpConnection(self._limits, self._config, self._state, {})
        transport = _Transport(host)
        connection.connection_made(cast(asyncio.Transport, transport))
        return connection, transport


def run(act: Callable[[_Server], None], limits: Limits | None = None) -> None:
    async def in_a_loop() -> None:
        server = _Server(limits or Limits())
        act(server)
        server.end()

    asyncio.run(in_a_loop())


def later() -> float:
    return time.monotonic() + LATER_S


def test_a_connection_must_bring_a_request() -> None:
    def act(server: _Server) -> None:
        connection, transport = server.connect()
        connection.look(time.monotonic())
        assert not transport.aborted
        connection.data_received(b"GET / HTTP/1.1\r\n")
        connection.look(later())
        assert transport.aborted

    run(act)


def test_an_answer_may_take_long_but_must_be_read() -> None:
    def act(server: _Server) -> None:
        connection, transport = server.connect()
        connection.data_received(request("GET", "/"))
        connection.look(later())
        assert not transport.aborted
        transport.unread = 100_000
        connection.pause_writing()
        connection.look(time.monotonic())
        assert not transport.aborted
        connection.resume_writing()
        connection.look(later())
        assert not transport.aborted
        connection.pause_writing()
        connection.look(later())
        assert transport.aborted

    run(act)


def test_a_connection_that_is_refused_is_closed_in_the_end() -> None:
    def act(server: _Server) -> None:
        connection, transport = server.connect()
        connection.data_received(b"nonsense\r\n\r\n")
        assert transport.ended
        assert b"400 Bad Request" in transport.written
        assert b"\r\nConnection: close\r\n" in transport.written
        assert b"x-request-id: req_" in transport.written
        assert b"Retry-After" not in transport.written
        connection.look(time.monotonic())
        assert not transport.aborted
        connection.look(later())
        assert transport.aborted

    run(act)


def test_one_other_machine_cannot_take_all_connections() -> None:
    limits = Limits(num_connections=5, num_connections_per_address=2)

    def act(server: _Server) -> None:
        opened = [server.connect("192.168.1.9") for _ in range(3)]
        assert [transport.ended for _, transport in opened] == [False, False, True]
        assert b"503" in opened[-1][1].written
        assert b'"type":"server_error"' in opened[-1][1].written
        opened[-1][0].connection_lost(None)
        assert [server.connect()[1].ended for _ in range(4)] == [False, False, False, True]

    run(act, limits)


def test_what_comes_after_a_refusal_is_dropped_up_to_a_limit() -> None:
    def act(server: _Server) -> None:
        connection, transport = server.connect()
        connection.data_received(b"nonsense\r\n\r\n")
        written = transport.written
        connection.data_received(request("GET", "/"))
        assert transport.written == written
        assert not transport.aborted
        connection.data_received(b"x" * 1000)
        assert transport.aborted

    run(act, Limits(body_bytes=1000))


def test_connections_that_are_refused_do_not_pile_up() -> None:
    def act(server: _Server) -> None:
        opened = [server.connect()[1] for _ in range(10)]
        assert [transport.ended for transport in opened] == [False] * 2 + [True] * 2 + [False] * 6
        assert [transport.closing for transport in opened] == [False] * 4 + [True] * 6
        assert all(b"503" in transport.written for transport in opened[2:])

    run(act, Limits(num_connections=2))
