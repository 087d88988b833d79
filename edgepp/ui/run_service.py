"""Running a service in the foreground until Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from edgepp.engine.frontend import OnProgress
from edgepp.events import Event, Measuring
from edgepp.ui.progress import ByteProgress


class Service(Protocol):
    """What can be opened, watched and closed, such as a ``Background``."""

    async def open(self, on_progress: OnProgress | None = None) -> None:
        """Start the service."""

    async def close(self) -> None:
        """End the service, open or not."""

    def events(self) -> AsyncIterator[Event]:
        """Events as they happen, until the service ends."""


def run_until_stopped(
    service: Service,
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
