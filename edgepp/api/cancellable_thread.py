"""Long work beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from edgepp.backend.device import release_thread
from edgepp.error_boundary import failure

T = TypeVar("T")


async def apart(work: Callable[[threading.Event], T], undo: Callable[[T], None], patience_s: float | None = None) -> T:
    """What ``work`` gives, in a thread of its own.

    When this is cancelled, ``work`` is asked by its event to give up, and waited for, at most for ``patience_s``
    seconds; what it gives nevertheless, ``undo`` takes back. Cancelled once more, it is waited for no longer. Unlike a
    pool's thread, this one does not keep the process from ending.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()
    given_up = threading.Event()

    def released() -> T:
        try:
            return work(given_up)
        finally:
            release_thread()  # before anybody knows: the process may end then

    def run() -> None:
        try:
            done.set_result(released())
        except BaseException as error:  # noqa: BLE001 - handed to the one who waits for it, as what asyncio can hand on
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            done.set_exception(error if plain else failure(error, "opening"))

    thread = threading.Thread(target=run, name="opening", daemon=True)
    thread.start()
    waiting = asyncio.wrap_future(done)
    waiting.add_done_callback(asyncio.Future.exception)  # so that asyncio does not report it when nobody waits any more
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        done.add_done_callback(lambda late: undo(late.result()) if late.exception() is None else None)
        given_up.set()
        await asyncio.wait([waiting], timeout=patience_s)
        raise
    finally:
        if done.done():
            thread.join()
