"""Long work in a thread, which a cancelled ``asyncio`` task can give up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from edgepp.backend.device import release_thread
from edgepp.error_boundary import failure

T = TypeVar("T")


async def run_in_thread(
    work: Callable[[threading.Event], T], undo: Callable[[T], None], cancel_timeout_s: float | None = None
) -> T:
    """Run ``work`` in a thread of its own and return its result.

    When the awaiting task is cancelled, the event passed to ``work`` is set, and the thread is awaited for at most
    ``cancel_timeout_s`` seconds (None: until it ends, or the task is cancelled again). If ``work`` returns a result
    nevertheless, ``undo`` is called with it. Unlike a thread of a pool, this one does not keep the process from ending.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()
    given_up = threading.Event()

    def released() -> T:
        try:
            return work(given_up)
        finally:
            release_thread()  # before the result is set: the process may end as soon as it is

    def run() -> None:
        try:
            done.set_result(released())
        except BaseException as error:  # noqa: BLE001 - raised to the awaiting task, as a type that asyncio can raise
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            done.set_exception(error if plain else failure(error, "opening"))

    thread = threading.Thread(target=run, name="opening", daemon=True)
    thread.start()
    waiting = asyncio.wrap_future(done)
    waiting.add_done_callback(
        asyncio.Future.exception
    )  # reads the exception, so that asyncio does not report it as never retrieved
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        done.add_done_callback(lambda late: undo(late.result()) if late.exception() is None else None)
        given_up.set()
        await asyncio.wait([waiting], timeout=cancel_timeout_s)
        raise
    finally:
        if done.done():
            thread.join()
