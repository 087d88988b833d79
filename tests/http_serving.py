"""An ASGI application served on loopback by uvicorn, in a thread of the test."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tests.waiting import PATIENCE_S, eventually


@contextmanager
def serving_app(app: ASGIApp) -> Iterator[str]:
    """The base URL of ``app``, such as ``http://127.0.0.1:40123``; the server has ended when the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), name="http-server")
    thread.start()
    try:
        eventually("the HTTP server listens", lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
