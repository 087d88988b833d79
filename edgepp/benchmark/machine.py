"""What a figure was taken on: hardware, library versions, commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("edgepp", "onnxruntime", "mlx", "mlx-lm", "numpy", "pyzmq")
_BUSY = 0.75  # load for each CPU
_CLONE = Path(__file__).resolve().parents[2]


def machine() -> dict[str, Any]:
    """This machine, as JSON."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "cpus": psutil.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1m": psutil.getloadavg()[0],
        "libraries": dict(_versions()),
    }


def busy(about: Mapping[str, Any]) -> bool:
    """Whether a machine had so much else to do that its figures are not ones to quote."""
    return bool(about["load_1m"] > _BUSY * about["cpus"])


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return found


def _cpu_name() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str | None:
    """The commit of the clone that runs, with ``-dirty`` where it was changed; None where edgepp runs from no clone."""
    top = _output("git", "-C", str(_CLONE), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _CLONE:
        return None  # installed somewhere inside another project's repository
    return _output("git", "-C", str(_CLONE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
