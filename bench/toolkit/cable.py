"""Two network namespaces with a cable between them, limited to a rate by tc's tbf, for measurements over real TCP.

Needs Linux, root, and the ip and tc commands. Nothing outside the namespaces is changed, and the namespaces are removed
at the end.
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
"""Name of the cable's interface at both ends."""
_NAMED = Path("/var/run/netns")  # folder where ip keeps the names
_BURST_S = 200e-6
"""Burst size as seconds at full rate; small, because a larger burst would let short frames pass without delay."""
_MIN_BURST_BYTES = 1600  # one Ethernet frame
_QUEUE_BYTES = 4_000_000
_END_S = 5.0


def unavailable() -> str | None:
    """Reason why this machine cannot shape a link; None if it can."""
    if not sys.platform.startswith("linux"):
        return "links are shaped in network namespaces, which only Linux has"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"there is no {' and no '.join(missing)} command" if missing else None


def inside(namespace: str) -> tuple[str, ...]:
    """Prefix of a command that runs in ``namespace``."""
    return ("ip", "netns", "exec", namespace)


def end_once() -> None:
    """End this process with its clean-up on Ctrl-C, SIGTERM or SIGHUP; further signals are ignored."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)  # inherited by the commands of the clean-up
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, end)


@contextmanager
def cable() -> Iterator[tuple[str, str]]:
    """Make two namespaces with a cable between them; yields their names."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(namespace(f"edgepp{os.getpid()}-{end}")) for end in ("near", "far"))
        run_command("ip", "-n", near, "link", "add", PORT, "type", "veth", "peer", "name", PORT, "netns", far)
        for name, address in ((near, NEAR), (far, FAR)):
            run_command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", PORT)
            run_command("ip", "-n", name, "link", "set", PORT, "up")
        yield near, far


def shape(far: str, mbit_per_s: float | None) -> None:
    """Limit both directions of the cable to ``mbit_per_s``, None for no limit; this process must be at the near end."""
    for within in ((), inside(far)):
        run_command(*within, "tc", "qdisc", "replace", "dev", PORT, "root", *discipline(mbit_per_s))


def discipline(mbit_per_s: float | None) -> tuple[str, ...]:
    """Arguments of tc for the queue that limits one direction to ``mbit_per_s``."""
    if mbit_per_s is None:
        return ("noqueue",)
    burst = max(_MIN_BURST_BYTES, round(mbit_per_s * 125e3 * _BURST_S))
    return ("tbf", "rate", f"{mbit_per_s * 1e6:.0f}bit", "burst", str(burst), "limit", str(_QUEUE_BYTES))


def host(delay_ms: float) -> str:
    """Address on which a program at the far end listens: loopback if a proxy for the delay has the cable's address."""
    return "127.0.0.1" if delay_ms else FAR


@contextmanager
def delayed(far: str, ports: Sequence[int], delay_ms: float) -> Iterator[None]:
    """Delay every byte to and from ``ports`` at the far end; programs listen there on the address ``host``."""
    if not delay_ms:
        yield
        return
    ways = [((FAR, port), (host(delay_ms), port)) for port in ports]
    with slowed(SlowLink("delayed", delay_ms), ways, inside(far)):
        yield


def run_command(*command: str) -> None:
    """Run a command of the system, such as ``ip``.

    Raises:
        EdgeppError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeppError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace with loopback; its processes and itself end with the block."""
    try:
        run_command("ip", "netns", "add", name)
        run_command("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        if (_NAMED / name).exists():  # absent if Ctrl-C came before it was made
            _end(name)
            run_command("ip", "netns", "del", name)


def _end(namespace: str) -> None:
    """Kill the processes that Ctrl-C or an error may have left in a namespace, and their new children."""
    until_s = time.monotonic() + _END_S
    while time.monotonic() < until_s:
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        if not (pids := listed.stdout.split()):
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
