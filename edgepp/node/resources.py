"""Resources of this machine: memory for a model, and speed, which is measured: there is no table of chip names."""

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
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgepp import __version__
from edgepp.child_process import interrupts_held, python_command
from edgepp.errors import EdgeppError
from edgepp.model.cache import cache_dir, locked
from edgepp.node.memory import usable_memory
from edgepp.safe_files import write_atomically
from edgepp.stage_process.compute_policy import stage_environment
from edgepp.stage_process.speed_probe import ProbeConfig

log = logging.getLogger("edgepp.node")
_PROBE_TIMEOUT_S = 240.0  # MLX compiles its kernels for a CUDA card when it first runs them
_POLL_S = 0.1


@dataclass(frozen=True)
class Resources:
    """Resources of one machine."""

    memory_bytes: int
    """Memory for a model, as of now."""
    backend: str
    device: str
    threads: int
    stream_bytes_per_s: float
    """Rate at which decode steps read weights."""
    flops_per_s: float
    """Floating-point operations per second of a prefill chunk."""
    half_s: float
    """Seconds that half of a layer takes a rank of a group beyond its part of the whole layer's time."""


def measure(
    backend: str,
    threads: int,
    exact: bool = False,
    on_measure: Callable[[], None] = lambda: None,
    given_up: threading.Event | None = None,
) -> Resources:
    """Resources of this machine: memory as of now, and speed, which is read from the cache once it was measured.

    What was measured beside busy programs counts until the next call, which measures again and takes the better of
    each value. ``on_measure`` is called before a measurement, which takes some seconds in a child process. A
    measurement ends early, with an error, when ``given_up`` is set.

    Raises:
        EdgeppError: The probe failed, or the cache cannot be locked.
    """
    key = {"edgepp": __version__, "backend": backend, "threads": threads, "exact": exact, "cpu": _cpu()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_dir() / "speed" / f"{digest}.json"
    with locked(file.with_suffix(".lock")):  # two measurements at once would slow each other down
        found = _cached_speed(file)
        if found is None or found.contended:
            on_measure()
            found = _checked_speed(run_probe(backend, threads, exact, given_up)).or_better(found)
            try:
                write_atomically(file, json.dumps({**key, **asdict(found)}, indent=1).encode())
            except OSError as error:
                log.info("the measured speed cannot be written to the cache: %s", error)
    speed = asdict(found)
    del speed["contended"]
    return Resources(memory_bytes=usable_memory(), threads=threads, **speed)


@dataclass(frozen=True)
class _Speed:
    backend: str
    device: str
    stream_bytes_per_s: float
    flops_per_s: float
    half_s: float
    contended: bool
    """Other programs used cores that the measurement needed."""

    def or_better(self, earlier: _Speed | None) -> _Speed:
        """This measurement, with the better values of an earlier one where both are contended."""
        if earlier is None or not self.contended:
            return self
        return replace(
            self,
            stream_bytes_per_s=max(self.stream_bytes_per_s, earlier.stream_bytes_per_s),
            flops_per_s=max(self.flops_per_s, earlier.flops_per_s),
            half_s=min(self.half_s, earlier.half_s),
        )


def _checked_speed(values: Any) -> _Speed:
    """Speed in the JSON ``values`` of a probe or of the cache.

    Raises:
        ValueError: The values are not a measurement.
    """
    if not isinstance(values, dict):
        raise ValueError("not a measurement")
    for name in ("backend", "device"):
        if not isinstance(values.get(name), str):
            raise ValueError(f"{name} is {values.get(name)!r}")
    rates = ("stream_bytes_per_s", "flops_per_s")
    for name in (*rates, "half_s"):
        value = values.get(name)
        if not isinstance(value, float) or not 0 <= value < math.inf or (name in rates and not value):
            raise ValueError(f"{name} is {value!r}")
    if not isinstance(values.get("contended"), bool):
        raise ValueError(f"contended is {values.get('contended')!r}")
    return _Speed(**{one.name: values[one.name] for one in fields(_Speed)})


def _cached_speed(file: Path) -> _Speed | None:
    """Speed that an earlier run measured; None where there is none, or the file is damaged."""
    try:
        return _checked_speed(json.loads(file.read_bytes())) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def run_probe(backend: str, threads: int, exact: bool, given_up: threading.Event | None = None) -> dict[str, Any]:
    """Answer of the speed probe, which runs in a child process so that its memory is freed.

    Raises:
        EdgeppError: The probe reported an error, died, or took more than four minutes.
    """
    with tempfile.TemporaryDirectory(prefix="edgepp-probe-", ignore_cleanup_errors=True) as folder:
        config = ProbeConfig(folder, backend, threads, exact)
        with interrupts_held():
            started = subprocess.Popen(  # noqa: S603 - a fixed command
                python_command("edgepp.stage_process.speed_probe"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # with a buffer, closing the input of a dead child would raise again
                env=stage_environment(threads),
            )
        with started as child:
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
    """Send ``line`` to the child and return its answer. The input stays open, because its end would end the child."""
    if child.stdin is None or child.stdout is None:
        raise EdgeppError("the speed probe has no pipe")
    try:
        child.stdin.write(line)
        child.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while not selector.select(_POLL_S):
                if given_up is not None and given_up.is_set():
                    raise EdgeppError("the measurement of this machine was cancelled")
        answer: dict[str, Any] = json.loads(child.stdout.readline())
    except (BrokenPipeError, ValueError) as error:
        raise EdgeppError(
            "the speed probe ended without an answer",
            "read the message that it printed above; without one, memory ran out or it took more than four minutes",
        ) from error
    return answer


def _cpu() -> str:
    """Description of the processor, so that machines can share a cache folder."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", info.read_text("utf-8"), re.MULTILINE) if info.is_file() else None
    return f"{platform.machine()} {named[1] if named else platform.processor()} x{os.cpu_count()}"
