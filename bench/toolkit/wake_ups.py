"""Time in which this machine passes a few bytes to another process that has waited for some milliseconds.

The other process sleeps in a read, or asks again and again; the bytes go through a pipe, or over a TCP connection on
loopback. The rest of a hop's time is that of edgepp and ZeroMQ.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgepp.benchmark.workload import percentile

PAUSE_S = 0.005
"""Seconds between two messages: about as long as a stage computes a step."""
ROUNDS = 100
_TIME = struct.Struct("d")


def measure() -> dict[str, dict[str, float]]:
    """Median and 95th percentile of microseconds from writing to reading, by way and manner of waiting."""
    return {
        f"{way}, {'asleep' if sleeps else 'awake'}": _measure(way, sleeps=sleeps)
        for way in ("pipe", "tcp")
        for sleeps in (True, False)
    }


def _measure(way: str, *, sleeps: bool) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        read, write = os.pipe()
        child = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).resolve()),
                way,
                str(int(sleeps)),
                str(server.getsockname()[1]),
                str(read),
            ],
            stdout=subprocess.PIPE,
            pass_fds=(read,),
        )
        os.close(read)
        connection, _ = server.accept()
    assert child.stdout is not None
    try:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            took_us = []
            for _ in range(ROUNDS):
                time.sleep(PAUSE_S)
                now = _TIME.pack(time.perf_counter())
                if way == "pipe":
                    os.write(write, now)
                else:
                    connection.sendall(now)
                took_us.append(_TIME.unpack(child.stdout.read(_TIME.size))[0] * 1e6)
    finally:
        os.close(write)
        child.kill()
        child.communicate()
    return {"median": statistics.median(took_us), "p95": percentile(took_us, 95)}


def _answer(way: str, *, sleeps: bool, port: int, pipe: int) -> None:
    """Read times from the other process, and write the age of each, until the end of the input."""
    connection = socket.create_connection(("127.0.0.1", port))
    os.set_blocking(pipe, sleeps)
    connection.setblocking(sleeps)
    read: Callable[[], bytes] = (lambda: os.read(pipe, 64)) if way == "pipe" else (lambda: connection.recv(64))
    while True:
        try:
            data = read()
        except BlockingIOError:
            os.sched_yield()
            continue
        if not data:
            return
        os.write(1, _TIME.pack(time.perf_counter() - _TIME.unpack(data)[0]))


if __name__ == "__main__":
    _answer(sys.argv[1], sleeps=sys.argv[2] == "1", port=int(sys.argv[3]), pipe=int(sys.argv[4]))
