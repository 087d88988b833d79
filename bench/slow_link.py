"""A link that takes its time and has a rate: the proxy's delay, and bytes that leave one after the other.

    python bench/slow_link.py --delay-ms 1 --mbit 20 127.0.0.2:5720=127.0.0.1:5720 127.0.0.2:5721=127.0.0.1:5721

It says `ready` when it listens, and ends with its standard input. Every connection and direction has a rate of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from proxy import Proxy, Way, way

from edgepp.errors import EdgeppError

_PIECE = 1 << 16
_STOP_S = 5.0


@dataclass(frozen=True)
class Kind:
    """How slow a link is; ``loopback`` is none at all."""

    name: str = "loopback"
    delay_ms: float = 0.0
    mbit: float = math.inf

    @property
    def direct(self) -> bool:
        """Whether nothing stands between."""
        return not self.delay_ms and self.mbit == math.inf


class SlowLink(Proxy):
    """The proxy with a rate."""

    def __init__(self, ways: Sequence[tuple[Way, Way]], delay_s: float, bytes_s: float) -> None:
        """See ``Proxy``; ``bytes_s`` a connection and direction."""
        self._bytes_s = bytes_s
        super().__init__(ways, delay_s)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: a piece leaves when those before it have left and its own bytes have, and then the delay."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = self._loop.create_task(self._send(held, writer))
        free_s = 0.0
        try:
            with suppress(ConnectionError):
                while piece := await reader.read(_PIECE):
                    free_s = max(free_s, self._loop.time()) + len(piece) / self._bytes_s
                    held.put_nowait((free_s + self._delay_s, piece))
            held.put_nowait((max(free_s, self._loop.time()) + self._delay_s, b""))
            await sending
        finally:
            sending.cancel()


@contextmanager
def slowed(kind: Kind, ways: Sequence[tuple[Way, Way]]) -> Iterator[None]:
    """Run a link in a process of its own, so that it takes nobody's interpreter.

    Raises:
        EdgeppError: it does not come up.
    """
    pairs = [f"{a[0]}:{a[1]}={b[0]}:{b[1]}" for a, b in ways]
    command = [sys.executable, __file__, "--delay-ms", str(kind.delay_ms), "--mbit", str(kind.mbit), *pairs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if child.stdout.readline() != "ready\n":
                raise EdgeppError("the slow link did not come up", "on macOS: ifconfig lo0 alias 127.0.0.2")
            yield
        finally:
            child.stdin.close()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()


def main() -> None:
    """Pass on until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="+", type=way, metavar="HERE=THERE", help="where to listen, where to pass on to")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="each way (%(default)s)")
    parser.add_argument("--mbit", type=float, default=math.inf, help="Mbit/s each way (%(default)s)")
    options = parser.parse_args()
    with SlowLink(options.ways, options.delay_ms / 1e3, options.mbit * 1e6 / 8):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
