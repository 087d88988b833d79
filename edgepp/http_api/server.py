"""The HTTP server of a cluster, in the event loop of the program.

async with edgepp.serve("smollm2-135m") as cluster, edgepp.HttpServer(cluster) as http:
    print(http.url)
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from socket import socket
from typing import Any, cast

import uvicorn

from edgepp.cluster.discovery.network_interfaces import usable_addresses
from edgepp.coordinator.status_sources import HttpAddress
from edgepp.errors import EdgeppError
from edgepp.http_api.api_keys import add_key, load_keys
from edgepp.http_api.app import make_app
from edgepp.http_api.cluster_models import ClusterModels
from edgepp.http_api.connection import HttpConnection
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generator import LOADING_RETRY_S
from edgepp.http_api.http_options import EVERYWHERE, LOOPBACK, HttpOptions, Limits
from edgepp.http_api.listening import Listening, listen
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.running_requests import RunningRequests
from edgepp.python_api import ServedCluster
from edgepp.python_api.async_resource import AsyncResource
from edgepp.wire.address import Address

log = logging.getLogger("edgepp.http_api")
_TICKS_PER_LOOK = 10  # uvicorn ticks ten times per second
_CANCEL_S = 1.0
_TELL_S = _FLUSH_S = 0.5
_FIRST_KEY = "lan"


class HttpServer(AsyncResource):
    """An HTTP server over the model of a cluster. Use it in an ``async with`` statement."""

    def __init__(
        self, models: ServedCluster | ModelService, options: HttpOptions | None = None, limits: Limits | None = None
    ) -> None:
        self._models = models
        self.options = options or HttpOptions()
        self._limits = limits or Limits()
        self.new_key = ""
        """The secret of the API key that ``open`` has made, since there was none."""
        self._listening: Listening | None = None
        self._server: _Server | None = None
        self._running: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Take the port before ``open``; clients that connect wait until then.

        Raises:
            UsageError: the address is taken, or not one of this machine.
        """
        if self._listening is None:
            self._listening = listen(self.options)

    async def open(self) -> None:
        """Begin to answer.

        Raises:
            UsageError: the address is taken, or not one of this machine.
            EdgeppError: the file of API keys cannot be read or written.
        """
        if self._running is not None:
            return
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        self.listen()
        if self.options.lan and not self.has_keys:
            self.new_key = add_key(_FIRST_KEY)
        models = self._models
        service = ClusterModels(models, self.options.aliases) if isinstance(models, ServedCluster) else models
        traces = models.traces if isinstance(models, ServedCluster) else None
        running, key_required = RunningRequests(), self.is_key_required
        app = make_app(service, self.options, self._limits, key_required=key_required, running=running, traces=traces)
        stopped = _stopped(str(service.status().get("coordinator") or "the server"))
        server = self._server = _Server(_config(app, self._limits), self._limits, running, stopped)
        self._running = asyncio.create_task(server.serve(list(self._bound.sockets)))
        self._running.add_done_callback(_log_failure)
        await server.listening.wait()
        if not server.started:
            await self._running
        if isinstance(models, ServedCluster):
            models.tell_http(HttpAddress(self.url, self.lan_urls, self.is_key_required))

    async def close(self) -> None:
        """Stop to listen, end running answers after a short time, and close all connections."""
        running, self._running = self._running, None
        if isinstance(self._models, ServedCluster) and self._models.is_open:
            self._models.tell_http(None)
        if running is not None and self._server is not None:
            self._server.should_exit = True
            await asyncio.gather(running, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    @property
    def address(self) -> str:
        """The first address at which the server listens, as ``HOST:PORT``."""
        return str(self._bound.addresses[0])

    @property
    def url(self) -> str:
        """The base URL for clients on this machine."""
        address = self._bound.addresses[0]
        return f"http://{Address(LOOPBACK[0], address.port) if _is_everywhere(address) else address}"

    @property
    def lan_urls(self) -> tuple[str, ...]:
        """The base URLs for clients on other machines."""
        if not self.is_exposed:
            return ()
        bound = self._bound.addresses
        hosts = usable_addresses() if any(map(_is_everywhere, bound)) else [address.host for address in bound]
        return tuple(f"http://{Address(host, bound[0].port)}" for host in hosts if "%" not in host)

    @property
    def is_key_required(self) -> bool:
        """Whether every client needs an API key."""
        return self.options.require_key or self.is_exposed

    @property
    def has_keys(self) -> bool:
        """Whether there is any API key."""
        return bool(load_keys())

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach the server."""
        return not all(address.is_loopback for address in self._bound.addresses)

    @property
    def taken_port(self) -> int | None:
        """The usual port, if another program holds that port and the server listens at another one."""
        return self._bound.taken_port

    @property
    def _bound(self) -> Listening:
        if self._listening is None:
            raise EdgeppError("the HTTP server is not open", "use it in an `async with` statement")
        return self._listening


def _log_failure(running: asyncio.Task[None]) -> None:
    if not running.cancelled() and (error := running.exception()) is not None:
        log.error("the HTTP server ended by itself", exc_info=error)


def _is_everywhere(address: Address) -> bool:
    return address.host in EVERYWHERE


def _stopped(name: str) -> RequestError:
    hint = "start `edgepp serve` there, then ask again"
    return RequestError("stopped", f"{name} stopped serving", hint, retry_after_s=LOADING_RETRY_S)


def _config(app: Any, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http=cast("type[asyncio.Protocol]", partial(HttpConnection, limits)),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_s,
        h11_max_incomplete_event_size=limits.head_bytes,
    )


class _Server(uvicorn.Server):
    """uvicorn's server without signal handlers, whose shutdown ends every connection in bounded time."""

    def __init__(self, config: uvicorn.Config, limits: Limits, running: RunningRequests, stopped: RequestError) -> None:
        super().__init__(config)
        self._requests = running
        self._stopped = stopped
        self.listening = asyncio.Event()
        self._shutdown_s = limits.shutdown_s

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals to the program."""
        return nullcontext()

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begin to accept connections."""
        try:
            await super().startup(sockets)
        finally:
            self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        """Look at the deadlines of all connections once per second."""
        if counter % _TICKS_PER_LOOK == 0:
            for connection in self._connections:
                connection.look(time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop accepting; wait for running answers, then end them with an error; close all connections."""
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        for connection in self._connections:
            connection.shutdown()
        tasks = set(self.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=self._shutdown_s)
        await self._requests.end_all(self._stopped, _TELL_S)
        for task in tasks:
            task.cancel()
        await self._flush()
        for connection in self._connections:
            connection.transport.abort()  # else a task could wait for its client to read
        await asyncio.sleep(0)  # asyncio tells connections of their end in its next step
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_S)
        for server in self.servers:
            with suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), _CANCEL_S)

    async def _flush(self) -> None:
        """Wait a moment until the ends of answers are sent."""
        until_s = time.monotonic() + _FLUSH_S
        while time.monotonic() < until_s and any(one.is_sending for one in self._connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    @property
    def _connections(self) -> list[HttpConnection]:
        return cast("list[HttpConnection]", list(self.server_state.connections))
