"""A coordinator, node or stage that runs in the background of an ``asyncio`` program, and its events."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from edgepp.engine.frontend import OnProgress
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError
from edgepp.events import Event, OnEvent
from edgepp.python_api.async_resource import AsyncResource
from edgepp.python_api.cancellable_thread import run_in_thread

MAX_EVENTS = 1024
"""Events kept until they are read; further events displace the oldest."""
_CHECK_INTERVAL_S = 0.2
_CANCEL_TIMEOUT_S = 1.0
"""Wait for an opening that was cancelled; a service that opens later is closed at once."""


class BackgroundService(Protocol):
    """A coordinator, node or stage with threads and processes of its own; all calls come from worker threads."""

    def check(self) -> bool:
        """Whether the service still runs; False if it has ended as intended.

        Raises:
            EdgeppError: a part of the service failed.
        """

    def close(self) -> None:
        """End the service's threads and processes."""


S = TypeVar("S", bound=BackgroundService)
Make = Callable[[OnEvent, OnProgress, threading.Event], S]
"""Function that makes and starts a service, in a worker thread; it gives up when the event is set or ``OnProgress``
raises."""


class Background(AsyncResource, Generic[S]):
    """A service in the background of the event loop. Use it in an ``async with`` statement."""

    def __init__(self, make: Make[S]) -> None:
        self._make = make
        self._opened: S | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._waiting: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._changed = asyncio.Event()
        self._over = False
        self._error: EdgeppError | None = None

    async def open(self, on_progress: OnProgress | None = None) -> None:
        """Start the service, unless it runs. ``on_progress(done_bytes, total_bytes, what)`` runs in another thread.

        Raises:
            EdgeppError: the service cannot start; nothing of it is left running.
        """
        if self.is_open:
            return
        if self._opened is not None:
            await self.close()
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed, so nobody reads events
                loop.call_soon_threadsafe(self._add_event, event)

        def work(given_up: threading.Event) -> S:
            def progress(done: int, total: int, what: str) -> None:
                if given_up.is_set():
                    raise EdgeppError("opening was cancelled")
                if on_progress is not None:
                    on_progress(done, total, what)

            return self._make(on_event, progress, given_up)

        self._waiting.clear()
        self._over, self._error = False, None
        service = self._opened = await run_in_thread(work, lambda late: late.close(), _CANCEL_TIMEOUT_S)
        self._watching = asyncio.create_task(self._watch(service))

    async def close(self) -> None:
        """End the service, its threads and its processes."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        await self._shut()
        self._opened = self._closing = None
        self._end(None)

    async def events(self) -> AsyncIterator[Event]:
        """Events as they happen, from the opening on; for one reader.

        The iteration ends when the service is closed, or when this machine has left its cluster.

        Raises:
            EdgeppError: a part of the service failed.
        """
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._error is not None:
                raise self._error
            if self._over:
                return
            self._changed.clear()
            await self._changed.wait()

    @property
    def is_open(self) -> bool:
        """Whether the service runs, as of the last check."""
        return self._opened is not None and not self._over

    @property
    def _service(self) -> S:
        if self._opened is None:
            raise EdgeppError("the service is not open", "use it in an `async with` statement")
        return self._opened

    async def _next_change(self) -> None:
        """Wait for the next event.

        Raises:
            EdgeppError: the service was closed, or a part of it failed.
        """
        if self._over:
            raise self._error or EdgeppError("the service was closed")
        self._changed.clear()
        await self._changed.wait()

    async def _watch(self, service: S) -> None:
        """Check the service until it ends, and then close it, even if nobody reads its events."""
        failed: EdgeppError | None = None
        try:
            while await asyncio.to_thread(service.check):  # noqa: ASYNC110 - the check looks at a process and a file
                await asyncio.sleep(_CHECK_INTERVAL_S)
        except Exception as error:  # noqa: BLE001 - outermost level of the task; raised to the reader of the events
            failed = explained(error)
        await self._shut()
        self._end(failed)

    async def _shut(self) -> None:
        """Close the service once; closing continues if a task that waits for it is cancelled."""
        if self._closing is None and self._opened is not None:
            self._closing = asyncio.create_task(asyncio.to_thread(self._opened.close))
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _add_event(self, event: Event) -> None:
        self._waiting.append(event)
        self._changed.set()

    def _end(self, error: EdgeppError | None) -> None:
        self._over, self._error = True, self._error or error
        self._changed.set()
