"""Slow link: a TCP proxy that forwards bytes at a rate and after a delay, equal in both directions. Tests use it too.

    python -m bench.toolkit.slow_link --delay-ms 10 --mbit 105 127.0.0.2:5720=127.0.0.1:5720

A stage has two neighbouring ports and sends only their numbers to its peers, so the proxy must have the same numbers on
another address (all of 127.0.0.0/8 is this machine on Linux; macOS needs `ifconfig lo0 alias 127.0.0.2`). The proxy
prints `ready` when it listens, and ends with its standard input. The rate is per connection and direction.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from bench.toolkit.script import program
from edgepp.child_process import python_command
from edgepp.errors import EdgeppError

HERE, FAR = "127.0.0.1", "127.0.0.2"
_CHUNK = 1 << 16
_STOP_S = 5.0

Way = tuple[str, int]
"""Host and port."""


class Proxy:
    """A proxy that forwards connections, in a thread of its own. Must be closed; a context manager."""

    def __init__(self, ways: Sequence[tuple[Way, Way]], delay_s: float, bytes_per_s: float = math.inf) -> None:
        """``ways`` are pairs of an address to listen on and an address to forward to.

        Raises:
            OSError: a listening address is not available.
        """
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            for here, there in ways:
                self._servers.append(asyncio.run_coroutine_threadsafe(self._listen(here, there), self._loop).result())
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _listen(self, here: Way, there: Way) -> asyncio.Server:
        def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._connect(reader, writer, there))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return await asyncio.start_server(arrived, *here)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: Way) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*there)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, far_writer))
                both.create_task(self._forward(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction: a piece leaves when all bytes up to its end fit the rate, plus the delay."""
        pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = self._loop.create_task(self._send(pending, writer))
        free_s = 0.0
        try:
            with suppress(ConnectionError):
                while piece := await reader.read(_CHUNK):
                    free_s = max(free_s, self._loop.time()) + len(piece) / self._bytes_per_s
                    pending.put_nowait((free_s + self._delay_s, piece))
            pending.put_nowait((max(free_s, self._loop.time()) + self._delay_s, b""))
            await sending
        finally:
            sending.cancel()

    async def _send(self, pending: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due_s, piece = await pending.get()
            await asyncio.sleep(due_s - self._loop.time())
            if not piece:
                writer.close()
                return
            writer.write(piece)

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(frozen=True)
class SlowLink:
    """Delay and rate of a link, equal in both directions; the default is loopback without a proxy."""

    name: str = "loopback"
    delay_ms: float = 0.0
    mbit_per_s: float = math.inf

    def __str__(self) -> str:
        return self.name

    @property
    def direct(self) -> bool:
        """Whether the link needs no proxy."""
        return not self.delay_ms and self.mbit_per_s == math.inf


@contextmanager
def slowed(link: SlowLink, ways: Sequence[tuple[Way, Way]], within: Sequence[str] = ()) -> Iterator[None]:
    """Run a proxy in its own process, so that it does not share an interpreter with a measured program.

    ``within`` is a prefix of its command, such as ``ip netns exec NAME``.

    Raises:
        EdgeppError: the proxy does not start.
    """
    pairs = [f"{a[0]}:{a[1]}={b[0]}:{b[1]}" for a, b in ways]
    rate = ("--delay-ms", str(link.delay_ms), "--mbit", str(link.mbit_per_s))
    command = [*within, *python_command("bench.toolkit.slow_link", *rate, *pairs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if child.stdout.readline() != "ready\n":
                raise EdgeppError(
                    "the proxy of a slow link did not start; its message is above",
                    "on macOS: ifconfig lo0 alias 127.0.0.2",
                )
            yield
        finally:
            child.stdin.close()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()


def free_pair() -> int:
    """A free port whose next port is free too, for a stage: one that no system gives to a connection by itself."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port


def way(text: str) -> tuple[Way, Way]:
    """Parse ``HOST:PORT=HOST:PORT``."""
    try:
        here, there = (part.rsplit(":", 1) for part in text.split("="))
        return (here[0], int(here[1])), (there[0], int(there[1]))
    except (ValueError, IndexError):
        raise argparse.ArgumentTypeError(f"'{text}' is not HOST:PORT=HOST:PORT") from None


def main() -> int:
    """Forward until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this process
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "ways", nargs="+", type=way, metavar="HERE=THERE", help="addresses to listen on and to forward to"
    )
    parser.add_argument("--delay-ms", type=float, default=0.0, help="each way (%(default)s)")
    parser.add_argument("--mbit", type=float, default=math.inf, help="Mbit/s each way (%(default)s)")
    options = parser.parse_args()
    with Proxy(options.ways, options.delay_ms / 1e3, options.mbit * 1e6 / 8):
        print("ready", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    program(main)
