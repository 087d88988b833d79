"""A slow link: a proxy that passes TCP bytes on at a rate and after a delay, the same each way. Tests share it.

    python -m bench.toolkit.slow_link --delay-ms 10 --mbit 105 127.0.0.2:5720=127.0.0.1:5720

A stage has two neighbouring ports, and tells its peers only their numbers: so give the proxy the same numbers on
another address (all of 127.0.0.0/8 is this machine on Linux; macOS needs `ifconfig lo0 alias 127.0.0.2`). The proxy
prints `ready` when it listens, and ends with its standard input. Every connection and direction has the rate to itself.
"""

from __future__ import annotations

import argparse
import asyncio
import math
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
    """Passes connections on, in a thread of its own. Close it, or use it in a ``with`` statement."""

    def __init__(self, ways: Sequence[tuple[Way, Way]], delay_s: float, bytes_per_s: float = math.inf) -> None:
        """``ways`` are pairs of where to listen and where to pass on to.

        Raises:
            OSError: an address cannot be listened on.
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
        """Cut every connection."""
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
                both.create_task(self._pass(reader, far_writer))
                both.create_task(self._pass(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: a piece leaves when those before it and its own bytes have left, and then the delay."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = self._loop.create_task(self._send(held, writer))
        free_s = 0.0
        try:
            with suppress(ConnectionError):
                while piece := await reader.read(_CHUNK):
                    free_s = max(free_s, self._loop.time()) + len(piece) / self._bytes_per_s
                    held.put_nowait((free_s + self._delay_s, piece))
            held.put_nowait((max(free_s, self._loop.time()) + self._delay_s, b""))
            await sending
        finally:
            sending.cancel()

    async def _send(self, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due_s, piece = await held.get()
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
    """How slow a link is; ``loopback`` is not slowed at all."""

    name: str = "loopback"
    delay_ms: float = 0.0
    mbit_per_s: float = math.inf

    def __str__(self) -> str:
        return self.name

    @property
    def direct(self) -> bool:
        """Whether nothing stands between."""
        return not self.delay_ms and self.mbit_per_s == math.inf


@contextmanager
def slowed(link: SlowLink, ways: Sequence[tuple[Way, Way]], within: Sequence[str] = ()) -> Iterator[None]:
    """Run a proxy in a process of its own, so that it shares nobody's interpreter.

    ``within`` is what its command stands behind, such as ``ip netns exec NAME``.

    Raises:
        EdgeppError: the proxy does not come up.
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
                    "the proxy of a slow link did not come up; its own message stands above",
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
    """A port that is free, with the next one, for a stage."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 1))
                return port


def way(text: str) -> tuple[Way, Way]:
    """``HOST:PORT=HOST:PORT`` from a command line."""
    try:
        here, there = (part.rsplit(":", 1) for part in text.split("="))
        return (here[0], int(here[1])), (there[0], int(there[1]))
    except (ValueError, IndexError):
        raise argparse.ArgumentTypeError(f"'{text}' is not HOST:PORT=HOST:PORT") from None


def main() -> int:
    """Pass on until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started it decides
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="+", type=way, metavar="HERE=THERE", help="where to listen, where to pass on to")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="each way (%(default)s)")
    parser.add_argument("--mbit", type=float, default=math.inf, help="Mbit/s each way (%(default)s)")
    options = parser.parse_args()
    with Proxy(options.ways, options.delay_ms / 1e3, options.mbit * 1e6 / 8):
        print("ready", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    program(main)
