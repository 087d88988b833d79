"""A local network of hosts on one machine: network namespaces on a bridge, which has a namespace of its own.

Nothing outside them is touched. Needs root and Linux. What is made here bears the number of this process and is gone
when the block ends.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PREFIX4, _PREFIX6 = "10.77.0", "fd77"
_BRIDGE, _PORT, _CABLE = "br0", "eth0", "eth1"
_MDNS = ("224.0.0.251/32", "ff02::fb/128")
_SNIFFER = Path(__file__).with_name("sniffer.py")
_END_S = 10.0

_serial = itertools.count()


def _ip(*args: str) -> str:
    """Run ``ip``; what it printed."""
    return _run("ip", *args)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


@functools.cache
def unavailable() -> str | None:
    """Why no namespace can be made here; None when one can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are a Linux thing"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no ip command"
    name = f"edgepp{os.getpid()}try"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", _BRIDGE, "type", "bridge")
    except AssertionError as error:
        return str(error)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@contextmanager
def _namespace(name: str, *, ipv6: bool = True) -> Iterator[None]:
    """A namespace with loopback; every process in it is ended before it goes."""
    _ip("netns", "add", name)
    try:
        # Addresses are usable at once, not after a second or two of duplicate detection.
        no_dad = "for d in all default; do echo 0 > /proc/sys/net/ipv6/conf/$d/accept_dad; done"
        _ip("netns", "exec", name, "sh", "-c", no_dad)
        if not ipv6:
            _ip("netns", "exec", name, "sh", "-c", no_dad.replace("0 >", "1 >").replace("accept_dad", "disable_ipv6"))
        _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        _end_processes(name)
        _ip("netns", "del", name)


def _end_processes(name: str) -> None:
    deadline = time.monotonic() + _END_S
    while (pids := _ip("netns", "pids", name).split()) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)  # ends stopped ones too
            except ProcessLookupError:
                continue
        time.sleep(0.02)


class Lan:
    """A bridge that hosts are plugged into: 10.77.0.0/24 and, with ``ipv6``, fd77::/64."""

    def __init__(self, *, ipv6: bool = True) -> None:
        self.ipv6 = ipv6
        self._tag = f"edgepp{os.getpid()}x{next(_serial)}"
        self.namespace = f"{self._tag}-lan"
        self.hosts: list[Host] = []
        self._multicast = True
        self._stack = ExitStack()

    def __enter__(self) -> Lan:
        with ExitStack() as stack:
            stack.enter_context(_namespace(self.namespace))
            # Without snooping, the flag of a port alone decides whether multicast leaves through it.
            options = ("mcast_snooping", "0", "forward_delay", "0")
            _ip("-n", self.namespace, "link", "add", _BRIDGE, "type", "bridge", *options)
            _ip("-n", self.namespace, "addr", "add", f"{_PREFIX4}.1/24", "dev", _BRIDGE)
            _ip("-n", self.namespace, "link", "set", _BRIDGE, "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """Plug in a host of this name, up to ten letters; it goes with the network."""
        number = len(self.hosts) + 2
        host = Host(self, name, f"{self._tag}-{name}", f"p{number}", f"{_PREFIX4}.{number}")
        self._stack.enter_context(host.plugged_in())
        self.hosts.append(host)
        host.flood(self._multicast)
        return host

    def block_multicast(self) -> None:
        """Stop all multicast between hosts, as access points with client isolation do; no host notices.

        IPv6 ends with it, since neighbours are found by multicast.
        """
        self._multicast = False
        for host in self.hosts:
            host.flood(on=False)

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Record every frame that crosses the bridge; ``frames`` is there when the block has ended."""
        with tempfile.NamedTemporaryFile(prefix="edgepp-frames-") as file:
            command = ["ip", "netns", "exec", self.namespace, sys.executable, str(_SNIFFER), file.name]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert child.stdin is not None
            assert child.stdout is not None
            capture = Capture([])
            try:
                assert child.stdout.readline() == "ready\n"
                yield capture
                child.stdin.close()
                dropped = child.stdout.readline()
                assert dropped == "0\n", f"the capture missed frames: {dropped!r}"
                capture.frames.extend(_frames(Path(file.name).read_bytes()))
            finally:
                child.kill()
                child.wait()
                child.stdin.close()
                child.stdout.close()


@dataclass
class Capture:
    """Ethernet frames, each of them twice: as it entered the bridge and as it left."""

    frames: list[bytes]

    def holds(self, needle: bytes) -> bool:
        """Whether a frame has these bytes."""
        return any(needle in frame for frame in self.frames)


def _frames(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 4 + size]
        position += 4 + size


class Host:
    """A machine on the network: its own addresses, loopback, and ``EDGEPP_HOME``."""

    def __init__(self, lan: Lan, name: str, namespace: str, port: str, address: str) -> None:
        self.name, self.namespace, self.address = name, namespace, address
        self.env = dict(os.environ)
        self.clock_ahead_s = 0
        """Seconds by which the monotonic clock of processes that are started from now on is ahead of this machine's."""
        self._lan = lan
        self._port = port  # the bridge's end of the cable
        self._processes: list[subprocess.Popen[Any]] = []
        self._logs = Path()

    @contextmanager
    def plugged_in(self) -> Iterator[None]:
        """The host, for as long as the block; entered by ``Lan.host``."""
        with ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="eh-"))
            self.env |= {"EDGEPP_HOME": home, "EDGEPP_NAME": self.name}
            self._logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="el-")))
            stack.callback(self._reap)
            stack.enter_context(_namespace(self.namespace, ipv6=self._lan.ipv6))
            peer = ("peer", "name", _PORT, "netns", self.namespace)
            _ip("-n", self._lan.namespace, "link", "add", self._port, "type", "veth", *peer)
            _ip("-n", self._lan.namespace, "link", "set", self._port, "master", _BRIDGE)
            self.link(up=True)
            self._ip("link", "set", _PORT, "up")
            self.move(self.address)
            yield

    @property
    def home(self) -> Path:
        """Its ``EDGEPP_HOME``."""
        return Path(self.env["EDGEPP_HOME"])

    def log(self) -> Path:
        """A new file for what a process prints."""
        return self._logs / f"{len(self._processes)}.log"

    @property
    def logs(self) -> list[str]:
        """All that was printed into such files."""
        return [path.read_text() for path in sorted(self._logs.iterdir())]

    def move(self, new_address: str) -> None:
        """Take another IPv4 address of the network, like ``10.77.0.40``, and the IPv6 address with its number."""
        self._ip("addr", "flush", "dev", _PORT, "scope", "global")
        self._ip("addr", "add", f"{new_address}/24", "dev", _PORT)
        if self._lan.ipv6:
            self._ip("addr", "add", f"{_PREFIX6}::{new_address.rpartition('.')[2]}/64", "dev", _PORT, "nodad")
        self._ip("route", "replace", "default", "via", f"{_PREFIX4}.1")
        self._ip("route", "replace", "224.0.0.0/4", "dev", _PORT)
        self.address = new_address

    def link(self, up: bool) -> None:
        """Plug the cable in, or pull it out; the host keeps its addresses."""
        _ip("-n", self._lan.namespace, "link", "set", self._port, "up" if up else "down")

    def cable(self, other: Host) -> None:
        """Connect ``other`` by a second cable, without the bridge: 10.78.0.1 here, 10.78.0.2 there."""
        end = ("type", "veth", "peer", "name", _CABLE, "netns", other.namespace)
        self._ip("link", "add", _CABLE, *end)
        for number, host in enumerate((self, other), 1):
            host._ip("addr", "add", f"10.78.0.{number}/24", "dev", _CABLE)
            host._ip("link", "set", _CABLE, "up")

    def uncable(self) -> None:
        """Pull that cable out, and take its addresses away on both sides."""
        self._ip("link", "del", _CABLE)

    def swallow(self, address: str, on: bool) -> None:
        """Whether all that this host sends to an IPv4 address vanishes, which neither side is told."""
        self._ip("route", "add" if on else "del", "blackhole", f"{address}/32")

    def slow_down(self, kbit_per_s: int | None, port: int | None = None) -> None:
        """Limit what this host sends, all of it or only by IPv4 to and from a TCP port; None ends the limit."""
        qdisc = ("ip", "netns", "exec", self.namespace, "tc", "qdisc")
        if kbit_per_s is None:
            _run(*qdisc, "del", "dev", _PORT, "root")
            return
        rate = ("rate", f"{kbit_per_s}kbit")
        if port is None:
            _run(*qdisc, "add", "dev", _PORT, "root", "tbf", *rate, "burst", "5000", "limit", "4000000")
            return
        tc = ("ip", "netns", "exec", self.namespace, "tc")
        _run(*qdisc, "add", "dev", _PORT, "root", "handle", "1:", "htb", "default", "1")
        _run(*tc, "class", "add", "dev", _PORT, "parent", "1:", "classid", "1:1", "htb", "rate", "1gbit")
        _run(*tc, "class", "add", "dev", _PORT, "parent", "1:", "classid", "1:2", "htb", *rate)
        for end in ("dport", "sport"):
            match = ("u32", "match", "ip", end, str(port), "0xffff", "flowid", "1:2")
            _run(*tc, "filter", "add", "dev", _PORT, "parent", "1:", "protocol", "ip", *match)

    def flood(self, on: bool) -> None:
        """Whether the bridge passes multicast on to this host."""
        flag = "on" if on else "off"
        _ip("-n", self._lan.namespace, "link", "set", self._port, "type", "bridge_slave", "mcast_flood", flag)

    def block_multicast(self) -> None:
        """Drop multicast DNS of this host in both directions, as a firewall on it would: sending fails with EPERM."""
        for group in _MDNS:
            for direction in ("out", "in"):
                self._ip("xfrm", "policy", "add", "dst", group, "dir", direction, "action", "block")

    def add_decoy(self, name: str, address: str) -> None:
        """Add an interface that leads nowhere, such as ``docker0`` with ``172.17.0.1/16``."""
        self._ip("link", "add", name, "type", "veth", "peer", "name", "nowhere")
        self._ip("addr", "add", address, "dev", name)
        for end in (name, "nowhere"):
            self._ip("link", "set", end, "up")

    def run(self, *args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the caller looks at the status."""
        command = self._command(*args)
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)

    def popen(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command; it is killed with the host."""
        process = subprocess.Popen(self._command(*args), env=self.env, text=True, **options)
        self._processes.append(process)
        return process

    def edgepp(self, *args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run ``edgepp``."""
        return self.run(sys.executable, "-m", "edgepp", *args, timeout=timeout)

    def popen_edgepp(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``edgepp``."""
        return self.popen(sys.executable, "-m", "edgepp", *args, **options)

    def _command(self, *args: str) -> list[str]:
        clock = ["unshare", "--time", "--monotonic", str(self.clock_ahead_s), "--fork", "--kill-child"]
        return ["ip", "netns", "exec", self.namespace, *(clock if self.clock_ahead_s else ()), *args]

    def _ip(self, *args: str) -> None:
        _ip("-n", self.namespace, *args)

    def _reap(self) -> None:
        for process in self._processes:
            process.wait(_END_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
