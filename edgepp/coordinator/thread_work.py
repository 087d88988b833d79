"""Work that other threads give to one thread, such as a change of the plan for the coordinator's thread."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future, wait

from edgepp.errors import EdgeppError

_LOOK_S = 0.1
"""The time between two looks at whether the thread still runs."""


class ThreadWork:
    """A queue of work for one thread, which calls ``run`` periodically."""

    def __init__(self, is_alive: Callable[[], bool]) -> None:
        """``is_alive`` says whether the thread runs."""
        self._is_alive = is_alive
        self._waiting: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()

    def do(self, work: Callable[[], None]) -> None:
        """Have the thread call ``work``, and return once ``work`` has returned. Safe from any other thread.

        Raises:
            EdgeppError: the work raised it, or the thread has ended.
        """
        done: Future[None] = Future()
        self._waiting.put((work, done))
        while not done.done():
            if not self._is_alive():
                raise EdgeppError("the coordinator has ended")
            wait([done], _LOOK_S)
        done.result()

    def run(self) -> None:
        """Do the queued work; an error is raised in the thread that gave the work. Called in the thread itself."""
        while not self._waiting.empty():
            work, done = self._waiting.get()
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised in the other thread
                done.set_exception(error)
            else:
                done.set_result(None)
