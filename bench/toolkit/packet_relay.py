"""A cable between two network namespaces that delays every packet: two TAP devices and a process between them.

Used where the kernel has no netem. Every packet is delayed, whatever its ports, so real clusters run over it. The
relay's own work adds some 0.05 to 0.1 ms each way, which measurements of the link include.

    python -m bench.toolkit.packet_relay NEAR FAR DELAY_MS     (names of namespaces; ends with its standard input)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.toolkit.cable import PORT
from edgepp.child_process import python_command
from edgepp.errors import EdgeppError

_NAMED = Path("/var/run/netns")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_FRAME_BYTES = 2048
_SPIN_S = 100e-6
"""The relay waits without sleeping for a packet that is due sooner than this."""


@contextmanager
def relay(near: str, far: str, delay_ms: float) -> Iterator[None]:
    """Connect the namespaces by devices called as those of ``cable``, which have no address yet.

    Raises:
        EdgeppError: the relay does not start.
    """
    command = python_command("bench.toolkit.packet_relay", near, far, str(delay_ms))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if child.stdout.readline() != "ready\n":
                raise EdgeppError("the relay of packets did not start; its message is above")
            yield
        finally:
            child.kill()


def _tap(namespace: str) -> int:
    """Descriptor of a new TAP device in a namespace; this process is left there."""
    with (_NAMED / namespace).open() as named:
        if ctypes.CDLL(None, use_errno=True).setns(named.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", PORT.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def _forward(near: int, far: int, delay_s: float) -> None:
    """Forward frames both ways until standard input ends."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {near: deque(), far: deque()}
    other = {near: far, far: near}
    while True:
        now_s = time.perf_counter()
        due_s = min((queue[0][0] for queue in waiting.values() if queue), default=now_s + 1.0)
        wait_s = due_s - now_s
        ready, _, _ = select.select([near, far, sys.stdin], [], [], 0 if wait_s < _SPIN_S else wait_s - _SPIN_S)
        if sys.stdin in ready:
            return
        for device in (near, far):
            while device in ready:
                try:
                    frame = os.read(device, _FRAME_BYTES)
                except BlockingIOError:
                    break
                waiting[device].append((time.perf_counter() + delay_s, frame))
            queue = waiting[device]
            while queue and queue[0][0] <= time.perf_counter():
                _write(other[device], queue.popleft()[1])


def _write(device: int, frame: bytes) -> None:
    try:
        os.write(device, frame)
    except OSError as error:
        if error.errno != errno.EIO:  # the device is not up yet: like a cable that is not plugged in
            raise


def main() -> None:
    """Make the devices, and forward."""
    near, far, delay_ms = sys.argv[1:]
    devices = _tap(near), _tap(far)
    print("ready", flush=True)
    _forward(*devices, float(delay_ms) / 1e3)


if __name__ == "__main__":
    main()
