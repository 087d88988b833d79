"""Running a service in the foreground until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from edgepp.engine.frontend import OnProgress
from edgepp.events import Event, Measuring
from edgepp.output_streams import hold_outputs, require_no_output
from edgepp.structured_log import fields
from edgepp.ui.progress import ByteProgress

log = logging.getLogger("edgepp.events")


class Service(Protocol):
    """A service that can be opened, watched and closed, such as a ``Background``."""

    async def open(self, on_progress: OnProgress | None = None) -> None:
        """Start the service; ``on_progress(done_bytes, total_bytes, what)`` may be called in another thread.

        Raises:
            EdgeppError: the service cannot start.
        """

    async def close(self) -> None:
        """End the service, open or not."""

    def events(self) -> AsyncIterator[Event]:
        """Events as they happen, until the service ends."""


async def _end_at_once() -> None:
    """Stand in for the preparations of a service that needs none before it is closed."""


def run_until_stopped(
    service: Service,
    show: Callable[[Event], None],
    farewell: Callable[[], None],
    greet: Callable[[], None] = lambda: None,
    prepare_end: Callable[[], Awaitable[None]] = _end_at_once,
    *,
    quiet: bool,
) -> None:
    """Open ``service``, call ``greet``, ``show`` each event, and close the service at its end or at Ctrl-C.

    If Ctrl-C came after the opening, ``prepare_end`` is awaited until it ends or Ctrl-C comes again, and ``farewell``
    is called. ``quiet`` shows no progress of downloads and loads.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the service was open.
        EdgeppError: the service cannot be opened, or a part of it failed.
    """
    opened = asyncio.Event()
    came: list[int] = []
    hold_outputs()  # a terminal that takes no output must not block the event loop, where the HTTP server runs

    async def show_all() -> None:
        async for event in service.events():
            if not isinstance(event, Measuring):  # happens during the opening, and takes long
                await opened.wait()
            show(event)
            log.info("%s", event, extra=fields(type(event).__name__, **vars(event)))

    async def run() -> None:
        with _cancelled_by_signals(came):
            await run_to_the_end()
        if came:
            raise KeyboardInterrupt

    async def run_to_the_end() -> None:
        showing = asyncio.create_task(show_all())
        try:
            with ByteProgress(quiet=quiet) as progress:
                await service.open(progress)
            opened.set()
            greet()
            await showing
        except (asyncio.CancelledError, KeyboardInterrupt):
            if opened.is_set():
                require_no_output()  # Ctrl-C ends `| tee` too, and this machine's layers are moved all the same
                try:
                    await prepare_end()
                finally:
                    farewell()
            raise
        finally:
            showing.cancel()
            await service.close()

    try:
        asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError) as ended:
        if not opened.is_set() or not (came or isinstance(ended, KeyboardInterrupt)):
            for number in came:
                signal.raise_signal(number)  # so that the command ends as it does without an event loop
            raise


@contextmanager
def _cancelled_by_signals(came: list[int]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP cancel this task, as asyncio does at SIGINT; ``came`` collects the signals' numbers.

    An exception raised by the signal handler itself could break into any task.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}

    def stop(number: int) -> None:
        came.append(number)
        if len(came) > 1 or task is None:
            raise KeyboardInterrupt
        task.cancel()

    for number in handlers:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
