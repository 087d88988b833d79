"""Two network namespaces with a cable between them, held to a rate by tc's tbf: for measurements over real TCP.

Needs Linux, root, and the ip and tc commands. Nothing outside the namespaces is touched, and they are gone at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bench.toolkit.slow_link import SlowLink, slowed
from edgepp.errors import EdgeppError

NEAR, FAR = "10.78.0.1", "10.78.0.2"
PORT = "eth0"
"""The cable's plug at either end."""
_NAMED = Path("/var/run/netns")  # where ip keeps the names
_BURST_S = 200e-6
"""What may pass at once after a silence, as time at full rate: little, or short frames would not be held up at all."""
_LEAST_BURST = 1600  # bytes: one Ethernet frame
_QUEUE_BYTES = 4_000_000
_END_S = 5.0


def unavailable() -> str | None:
    """Why no link can be shaped here; None where one can."""
    if not sys.platform.startswith("linux"):
        return "links are shaped in network namespaces, which only Linux has"
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"there is no {' and no '.join(lacking)} command" if lacking else None


def inside(namespace: str) -> tuple[str, ...]:
    """What a command stands behind that is to run in a namespace."""
    return ("ip", "netns", "exec", namespace)


def end_once() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process with its clean-up, which further ones do not cut short."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)  # also for the commands that clean up
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, end)


@contextmanager
def cable() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable between them: their names."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(_namespace(f"edgepp{os.getpid()}-{end}")) for end in ("near", "far"))
        _call("ip", "-n", near, "link", "add", PORT, "type", "veth", "peer", "name", PORT, "netns", far)
        for name, address in ((near, NEAR), (far, FAR)):
            _call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", PORT)
            _call("ip", "-n", name, "link", "set", PORT, "up")
        yield near, far


def shape(far: str, mbit_per_s: float | None) -> None:
    """Hold both directions of the cable to a rate, or with None to none; this process is at its near end."""
    for within in ((), inside(far)):
        _call(*within, "tc", "qdisc", "replace", "dev", PORT, "root", *discipline(mbit_per_s))


def discipline(mbit_per_s: float | None) -> tuple[str, ...]:
    """The queue, in tc's words, that holds a direction to a rate."""
    if mbit_per_s is None:
        return ("noqueue",)
    burst = max(_LEAST_BURST, round(mbit_per_s * 125e3 * _BURST_S))
    return ("tbf", "rate", f"{mbit_per_s * 1e6:.0f}bit", "burst", str(burst), "limit", str(_QUEUE_BYTES))


def host(delay_ms: float) -> str:
    """Where a program at the far end listens: behind the proxy, if there is one, which has the other address."""
    return "127.0.0.1" if delay_ms else FAR


@contextmanager
def delayed(far: str, ports: Sequence[int], delay_ms: float) -> Iterator[None]:
    """Delay every byte to and from ``ports`` at the far end; see ``host`` for who listens there."""
    if not delay_ms:
        yield
        return
    ways = [((FAR, port), (host(delay_ms), port)) for port in ports]
    with slowed(SlowLink("delayed", delay_ms), ways, inside(far)):
        yield


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeppError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    try:
        _call("ip", "netns", "add", name)
        _call("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        if (_NAMED / name).exists():  # Ctrl-C may have come before
            _end(name)
            _call("ip", "netns", "del", name)


def _end(namespace: str) -> None:
    """End what Ctrl-C or an error may have left in a namespace, and what that starts meanwhile."""
    until_s = time.monotonic() + _END_S
    while time.monotonic() < until_s:
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        if not (pids := listed.stdout.split()):
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
