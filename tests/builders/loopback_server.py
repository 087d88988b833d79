"""An HTTP server on loopback over given routes, for tests with real clients."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tests.waiting import eventually


@contextmanager
def serving(routes: Sequence[BaseRoute]) -> Iterator[str]:
    """The base URL of a server with ``routes``, which runs in a thread until the block ends."""
    with serving_app(Starlette(routes=list(routes))) as url:
        yield url


@contextmanager
def serving_app(app: ASGIApp) -> Iterator[str]:
    """The base URL of a server of ``app``."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        settings = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="loopback-server")
        thread.start()
        try:
            eventually("the server listens", lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
