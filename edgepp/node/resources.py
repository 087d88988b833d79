"""What a machine has: memory that a model may use, and measured speed. No table of chip names."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import selectors
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil

from edgepp import __version__
from edgepp.child_process import python_command
from edgepp.errors import EdgeppError, UsageError
from edgepp.model.cache import cache_dir, locked
from edgepp.safe_files import write_atomically
from edgepp.stage_process.compute_policy import stage_environment
from edgepp.stage_process.speed_probe import ProbeConfig

log = logging.getLogger(__name__)
_RESERVE_BYTES = 512_000_000
_RESERVE_DIVISOR = 20
"""What stays free for everything else: 512 MB, or a twentieth of what is available where that is more."""
_PROBE_TIMEOUT_S = 60.0
_POLL_S = 0.1
_LINUX = platform.system() == "Linux"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Resources:
    """What one machine offers to a model."""

    memory_bytes: int
    """Bytes that a model may use now."""
    backend: str
    device: str
    threads: int
    stream_bytes_per_s: float
    """Bytes of weights that decoding streams in a second."""
    flops_per_s: float
    """FLOP/s of a prefill chunk."""


def parse_bytes(text: str) -> int:
    """Read a size such as ``8GB``, ``500 MB``, ``1.5GiB``, ``8G`` or ``65536B``; GB is 10⁹, GiB is 2³⁰.

    Raises:
        UsageError: the text is no such size, has no unit, or is less than a byte.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?))?(b?)\s*", text, re.IGNORECASE | re.ASCII)
    size = 0
    if match is not None and not (match[2] or match[4]):
        raise UsageError(
            f"'{text}' is not a size of memory: it has no unit", f"write {match[1]}GB, {match[1]}MB or {match[1]}B"
        )
    if match is not None:
        units = _BINARY_UNITS if match[3] else _UNITS
        size = int(Fraction(match[1]) * units[(match[2] or "").lower()])
    if size < 1:
        raise UsageError(f"'{text}' is not a size of memory", "write it like 8GB, 500MB or 1.5GiB")
    return size


def usable_memory(cap: int | None = None) -> int:
    """Bytes that a model may use on this machine now, at most ``cap``.

    On Apple silicon what Metal recommends as a working set; elsewhere what is available less a reserve, under Linux
    within the limits of the control groups that this process is in.
    """
    found = _metal_memory()
    if found is None:
        free = linux_memory() if _LINUX else psutil.virtual_memory().available
        found = max(0, free - max(_RESERVE_BYTES, free // _RESERVE_DIVISOR))
    return found if cap is None else min(found, cap)


def _metal_memory() -> int | None:
    """Metal's recommended working set in bytes; None without Metal. Not run on Apple silicon yet."""
    if platform.system() != "Darwin":
        return None  # importing MLX to be told so takes a second
    import mlx.core as mx

    from edgepp.backend.device import has_metal

    recommended = int(mx.device_info().get("max_recommended_working_set_size", 0)) if has_metal() else 0
    return recommended or None


def linux_memory(root: Path = Path("/")) -> int:
    """Bytes available to this process: the kernel's estimate, or less where a control group leaves less."""
    meminfo = (root / "proc/meminfo").read_text(encoding="ascii")
    match = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    available = int(match[1]) * 1024 if match else psutil.virtual_memory().available
    return max(0, min([available, *_group_room(root)]))


def _group_room(root: Path) -> Iterator[int]:
    """Bytes left in each limited control group around this process, of version 1 or 2.

    File pages that the kernel can drop at once count as free.
    """
    groups = root / "proc/self/cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(inner), -1, -1):  # a container may show its own group as the top
            room = _room(top.joinpath(*inner[:depth]), *names)
            if room is not None:
                yield room


def _room(group: Path, limit: str, used: str, droppable: str) -> int | None:
    try:
        most = (group / limit).read_text(encoding="ascii").strip()
        taken = int((group / used).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    match = re.search(rf"^{droppable} (\d+)$", stat, re.MULTILINE)
    return None if most == "max" else int(most) - taken + (int(match[1]) if match else 0)


def measure(
    backend: str,
    threads: int,
    exact: bool = False,
    on_measure: Callable[[], None] = lambda: None,
    given_up: threading.Event | None = None,
) -> Resources:
    """This machine's memory now, and its speed: measured once, in a child process, and then remembered.

    ``on_measure`` is called before the speed is measured, which takes some seconds; ``given_up`` ends that.

    Raises:
        EdgeppError: the probe failed, or the cache cannot be locked.
    """
    key = {"edgepp": __version__, "backend": backend, "threads": threads, "exact": exact, "cpu": _cpu()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_dir() / "speed" / f"{digest}.json"
    with locked(file.with_suffix(".lock")):  # two that measure at once would slow each other down
        found = _remembered(file)
        if found is None:
            on_measure()
            found = _measured(run_probe(backend, threads, exact, given_up))
            try:
                write_atomically(file, json.dumps({**key, **asdict(found)}, indent=1).encode())
            except OSError as error:
                log.info("the measurement is not remembered: %s", error)
    return Resources(memory_bytes=usable_memory(), threads=threads, **asdict(found))


@dataclass(frozen=True)
class _Speed:
    backend: str
    device: str
    stream_bytes_per_s: float
    flops_per_s: float


def _measured(values: Any) -> _Speed:
    """Check what a probe or the cache says.

    Raises:
        ValueError: it is no measurement.
    """
    if not isinstance(values, dict):
        raise ValueError("not a measurement")
    for name in ("backend", "device"):
        if not isinstance(values.get(name), str):
            raise ValueError(f"{name} is {values.get(name)!r}")
    for name in ("stream_bytes_per_s", "flops_per_s"):
        value = values.get(name)
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}")
    return _Speed(values["backend"], values["device"], values["stream_bytes_per_s"], values["flops_per_s"])


def _remembered(file: Path) -> _Speed | None:
    """What an earlier run measured; None where there is nothing, or nothing that can be read."""
    try:
        return _measured(json.loads(file.read_bytes())) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def run_probe(backend: str, threads: int, exact: bool, given_up: threading.Event | None = None) -> dict[str, Any]:
    """Run the probe in a child process, so that none of it stays in memory, and return its answer.

    Raises:
        EdgeppError: it reported an error, died, or took more than a minute.
    """
    with tempfile.TemporaryDirectory(prefix="edgepp-probe-", ignore_cleanup_errors=True) as folder:
        config = ProbeConfig(folder, backend, threads, exact)
        with subprocess.Popen(  # noqa: S603 - the command is ours
            python_command("edgepp.stage_process.speed_probe"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # else closing its input would raise again for a child that has died
            env=stage_environment(threads),
        ) as child:
            deadline = threading.Timer(_PROBE_TIMEOUT_S, child.kill)
            deadline.start()
            try:
                answer = _ask(child, json.dumps(asdict(config)).encode() + b"\n", given_up)
            finally:
                deadline.cancel()
                deadline.join()
                child.kill()
    if "error" in answer:
        raise EdgeppError(answer["error"], answer["hint"])
    return answer


def _ask(child: subprocess.Popen[bytes], line: bytes, given_up: threading.Event | None) -> dict[str, Any]:
    """The child's answer; its input stays open meanwhile, since it ends with that."""
    if child.stdin is None or child.stdout is None:
        raise EdgeppError("the speed probe has no pipe")
    try:
        child.stdin.write(line)
        child.stdin.flush()
        with selectors.DefaultSelector() as answered:
            answered.register(child.stdout, selectors.EVENT_READ)
            while not answered.select(_POLL_S):
                if given_up is not None and given_up.is_set():
                    raise EdgeppError("the measurement of this machine was given up")
        answer: dict[str, Any] = json.loads(child.stdout.readline())
    except (BrokenPipeError, ValueError) as error:
        raise EdgeppError(
            "the speed probe ended without an answer",
            "its own message stands above, unless memory ran out or it took more than a minute",
        ) from error
    return answer


def _cpu() -> str:
    """What tells this machine's processor from another's that shares the cache folder."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", info.read_text("utf-8"), re.MULTILINE) if info.is_file() else None
    return f"{platform.machine()} {named[1] if named else platform.processor()} x{os.cpu_count()}"
