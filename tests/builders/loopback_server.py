"""An HTTP server on loopback over an ASGI application or routes, in a thread of the test, for real clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tests.waiting import PATIENCE_S, eventually


@contextmanager
def serving(routes: Sequence[BaseRoute]) -> Iterator[str]:
    """The base URL of a server with ``routes``, which runs until the block ends."""
    with serving_app(Starlette(routes=list(routes))) as url:
        yield url


@contextmanager
def serving_app(app: ASGIApp) -> Iterator[str]:
    """The base URL of ``app``, such as ``http://127.0.0.1:40123``; the server has ended when the block ends."""
    settings = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), name="http-server")
        thread.start()
        try:
            eventually("the HTTP server listens", lambda: server.started or not thread.is_alive())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
