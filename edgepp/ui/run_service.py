"""A service that a command runs until Ctrl-C, and its farewell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edgepp.api.background import Background
from edgepp.events import Event, Measuring
from edgepp.ui.progress import ByteProgress


def run_until_stopped(
    service: Background[Any],
    show: Callable[[Event], None],
    farewell: Callable[[], None],
    greet: Callable[[], None] = lambda: None,
    *,
    quiet: bool,
) -> None:
    """Open ``service``, ``greet``, ``show`` its events, and close it; Ctrl-C ends it with ``farewell`` once it is open.

    ``quiet`` shows no progress of what is fetched and loaded.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the service was open.
        EdgeppError: the service cannot be opened, or a part of it ended by itself.
    """
    opened = asyncio.Event()

    async def show_all() -> None:
        async for event in service.events():
            if not isinstance(event, Measuring):  # what takes long before the service is open
                await opened.wait()
            show(event)

    async def run() -> None:
        showing = asyncio.create_task(show_all())
        try:
            with ByteProgress(quiet=quiet) as progress:
                await service.open(progress)
            opened.set()
            greet()
            await showing
        except (asyncio.CancelledError, KeyboardInterrupt):
            if opened.is_set():
                farewell()
            raise
        finally:
            showing.cancel()
            await service.close()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        if not opened.is_set():
            raise
