"""Running a service in the foreground until Ctrl-C."""

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
    """Open ``service``, call ``greet``, ``show`` each event, and close the service at its end or at Ctrl-C.

    ``farewell`` is called if Ctrl-C came after the opening. ``quiet`` shows no progress of downloads and loads.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the service was open.
        EdgeppError: the service cannot be opened, or a part of it failed.
    """
    opened = asyncio.Event()

    async def show_all() -> None:
        async for event in service.events():
            if not isinstance(event, Measuring):  # happens during the opening, and takes long
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
