"""The HTTP server with its web page over a ``ScriptedService``, in a thread of the test, for a browser."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.server import HttpServer
from tests.builders.cluster_state import STATUS
from tests.builders.scripted_service import Played, ScriptedService, Step, answer
from tests.waiting import PATIENCE_S


@dataclass
class PageServer:
    """A server whose answers a test writes."""

    url: str
    service: ScriptedService
    loop: asyncio.AbstractEventLoop

    def script(self, *scripts: Sequence[Step]) -> list[Played]:
        """Answer the next requests with ``scripts``, the last one again; the list fills with the requests."""
        self.service.played, self.service.scripts = [], scripts
        return self.service.played

    def release(self, event: asyncio.Event) -> None:
        """Let a script go on that waits for ``event``."""
        self.loop.call_soon_threadsafe(event.set)


@contextmanager
def page_server(options: HttpOptions | None = None) -> Iterator[PageServer]:
    """A server on a free port of loopback, until the block ends."""
    service = ScriptedService([answer("Hello")], state=STATUS)
    begun: list[PageServer] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with HttpServer(service, options or HttpOptions("127.0.0.1:0")) as server:
            begun.append(PageServer(server.url, service, asyncio.get_running_loop()))
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="page-server")
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield begun[0]
    finally:
        done.set()
        thread.join(PATIENCE_S)
