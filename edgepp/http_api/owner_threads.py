"""Threads for blocking work of requests: an owner with much work leaves threads to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

_MAX_THREADS = 64
_THREADS_OF_OWNER = 4


class OwnerThreads:
    """Threads that run functions, a few at a time for each owner."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_THREADS, "text")
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, owner: str, function: Callable[[], T]) -> T:
        """The result of ``function``, which holds one of the owner's places until it returns, also after a cancel."""
        places = self._places.get(owner) or self._places.setdefault(owner, asyncio.Semaphore(_THREADS_OF_OWNER))
        await places.acquire()
        try:
            running = asyncio.get_running_loop().run_in_executor(self._threads, function)
        except BaseException:
            places.release()
            raise
        running.add_done_callback(lambda _: places.release())
        running.add_done_callback(_read_exception)
        return await asyncio.shield(running)


def _read_exception(done: asyncio.Future[T]) -> None:
    """Read the exception of work that nobody waits for any more; asyncio would log it as never retrieved."""
    if not done.cancelled():
        done.exception()
