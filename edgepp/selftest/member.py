"""Entry point of a member of the selftest's own cluster: coordinator or node, in a process of its own.

The first line of standard input is its task, as JSON; the end of the input ends the process, so that no member outlives
the selftest. Reports are JSON lines on standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import AsyncExitStack
from typing import Any

from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError
from edgepp.python_api import ServedCluster, join, serve

_PORT_TRIES = 8


def report(event: str, **facts: object) -> None:
    """Print one report."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


async def run(task: dict[str, Any], ended: asyncio.Event) -> None:
    """Coordinate or join until standard input ends."""
    async with AsyncExitStack() as stack:
        threads = task["threads"]
        if task["role"] == "serve":
            cluster, code = await _coordinate(stack, task["model"], threads)
            report("listening", address=cluster.address, code=code)
        else:
            await stack.enter_async_context(
                join(task["code"], peers=[task["peer"]], threads=threads, listen="127.0.0.1:0")
            )
            report("joined")
        await ended.wait()


async def _coordinate(stack: AsyncExitStack, model: str, threads: int) -> tuple[ServedCluster, str]:
    """A coordinator at a free port of loopback, and the code of an invitation, which is taken at the next port.

    Raises:
        EdgeppError: the coordinator cannot run, or no next port was free in ``_PORT_TRIES`` tries.
    """
    tries = 0
    while True:
        tries += 1
        cluster = await stack.enter_async_context(
            serve(model, listen="127.0.0.1:0", threads=threads, exact=True, speculate="off", context=1024)
        )
        try:
            return cluster, await cluster.invite()
        except EdgeppError:
            if tries == _PORT_TRIES:
                raise
        await cluster.close()


async def main() -> None:
    """Run the task of the first line."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    task = json.loads(sys.stdin.readline())

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, name="end-of-input", daemon=True).start()
    running = asyncio.create_task(run(task, ended))
    await asyncio.wait([running, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    if not running.done() and not ended.is_set():
        return
    try:
        await running
    except Exception as error:  # noqa: BLE001 - outermost level of the process
        known = explained(error)
        report("error", message=str(known), hint=known.hint)


if __name__ == "__main__":
    asyncio.run(main())
