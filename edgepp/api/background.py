"""A service that runs beside the event loop, and what it tells."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from edgepp.api.cancellable_thread import apart
from edgepp.engine.frontend import OnProgress
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError
from edgepp.events import Event, OnEvent

MAX_EVENTS = 1024
"""Events that wait to be read; the oldest give way to further ones."""
_LOOK_S = 0.2
_PATIENCE_S = 1.0
"""How long opening may go on after it was cancelled; what it gives afterwards is closed at once."""


class BackgroundService(Protocol):
    """A coordinator, node or stage that runs in threads and processes of its own; made, asked and closed in threads."""

    def check(self) -> bool:
        """Whether the service goes on; False where it has come to its end.

        Raises:
            EdgeppError: a part of the service ended by itself.
        """

    def close(self) -> None:
        """End the service's threads and processes."""


S = TypeVar("S", bound=BackgroundService)
Make = Callable[[OnEvent, OnProgress, threading.Event], S]
"""Puts a service together, in a thread; gives up when the event is set or ``OnProgress`` raises."""


class Background(Generic[S]):
    """A service beside the event loop. Use it in an ``async with`` statement."""

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
        """Put the service together and start it, unless it runs already. ``on_progress`` is called in another thread.

        Raises:
            EdgeppError: one sentence about what keeps it from running; nothing is left behind.
        """
        if self.is_open:
            return
        if self._opened is not None:
            await self.close()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody reads events any more
                loop.call_soon_threadsafe(self._tell, event)

        def work(given_up: threading.Event) -> S:
            def progress(done: int, total: int, what: str) -> None:
                if given_up.is_set():
                    raise EdgeppError("this was given up while it loaded")
                if on_progress is not None:
                    on_progress(done, total, what)

            return self._make(tell, progress, given_up)

        self._waiting.clear()
        self._over, self._error = False, None
        service = self._opened = await apart(work, lambda late: late.close(), _PATIENCE_S)
        self._watching = asyncio.create_task(self._watch(service))

    async def close(self) -> None:
        """End the service, its threads and its processes."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        await self._shut()
        self._opened = self._closing = None
        self._end(None)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, as it happens, from the opening on; for one reader.

        The events end when the service is closed, or when this machine has left its cluster.

        Raises:
            EdgeppError: a part of the service ended by itself.
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
        """Whether the service runs, as far as is known."""
        return self._opened is not None and not self._over

    @property
    def _service(self) -> S:
        if self._opened is None:
            raise EdgeppError("this is not open", "use it in an `async with` statement")
        return self._opened

    async def _next_change(self) -> None:
        """Wait for the next event.

        Raises:
            EdgeppError: there will be none: a part of the service ended by itself, or the service was closed.
        """
        if self._over:
            raise self._error or EdgeppError("this was closed")
        self._changed.clear()
        await self._changed.wait()

    async def _watch(self, service: S) -> None:
        """See how the service fares; one that has come to its end is closed, also when nobody reads its events."""
        failed: EdgeppError | None = None
        try:
            while await asyncio.to_thread(service.check):  # noqa: ASYNC110 - a process and a file are looked at
                await asyncio.sleep(_LOOK_S)
        except Exception as error:  # noqa: BLE001 - the task's boundary: told to the one who reads the events
            failed = explained(error)
        await self._shut()
        self._end(failed)

    async def _shut(self) -> None:
        """Close the service once; the closing goes on when the one who waits for it is cancelled."""
        if self._closing is None and self._opened is not None:
            self._closing = asyncio.create_task(asyncio.to_thread(self._opened.close))
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _tell(self, event: Event) -> None:
        self._waiting.append(event)
        self._changed.set()

    def _end(self, error: EdgeppError | None) -> None:
        self._over, self._error = True, self._error or error
        self._changed.set()
