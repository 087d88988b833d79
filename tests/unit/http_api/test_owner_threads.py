"""Blocking work of one owner leaves threads to the others."""

from __future__ import annotations

import asyncio
import gc
import threading

from edgepp.http_api.owner_threads import OwnerThreads

PATIENCE_S = 60.0


def test_work_of_one_owner_does_not_keep_another_waiting() -> None:
    go, begun = threading.Event(), threading.Semaphore(0)

    def block() -> bool:
        begun.release()
        return go.wait(PATIENCE_S)

    async def main() -> None:
        threads = OwnerThreads()
        many = [asyncio.create_task(threads.run("many", block)) for _ in range(200)]
        await asyncio.sleep(0)
        assert await threads.run("one", lambda: 7) == 7
        for task in many[:100]:
            task.cancel()
        assert await threads.run("one", lambda: 8) == 8
        go.set()
        assert all(await asyncio.gather(*many[100:]))

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_cancelled_caller_holds_its_place_until_the_work_has_ended() -> None:
    go, running, most = threading.Event(), 0, 0

    def block() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go.wait(PATIENCE_S)
        running -= 1

    async def main() -> None:
        threads = OwnerThreads()
        for _ in range(20):
            task = asyncio.create_task(threads.run("many", block))
            await asyncio.sleep(0.001)
            task.cancel()
        go.set()
        await threads.run("many", lambda: None)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert 1 <= most <= 4


def test_work_that_fails_after_its_caller_has_gone_is_not_reported() -> None:
    """A client that leaves while its prompt is encoded, which then turns out to be too long."""
    go, reported = threading.Event(), []

    def fail() -> None:
        go.wait(PATIENCE_S)
        raise ValueError("too long")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        threads = OwnerThreads()
        task = asyncio.create_task(threads.run("one", fail))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        go.set()
        for _ in range(4):  # as many as there are places, so the one that failed has been given back
            await threads.run("one", lambda: None)
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert reported == []
