"""Facts about the machine of a measurement: hardware, library versions, commit."""

from __future__ import annotations

import json
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
_BUSY_LOAD_PER_CPU = 0.75
_CLONE = Path(__file__).resolve().parents[2]


def machine() -> dict[str, Any]:
    """Facts about this machine, as JSON values."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "cpus": psutil.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1m": psutil.getloadavg()[0],
        "libraries": library_versions(),
    }


def busy(about: Mapping[str, Any]) -> bool:
    """Whether the load of other programs was too high for figures worth quoting."""
    return bool(about["load_1m"] > _BUSY_LOAD_PER_CPU * about["cpus"])


def library_versions() -> dict[str, str]:
    """Version of each installed library of ``LIBRARIES``."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
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
    """Commit of the running clone, with ``-dirty`` if it has changes; None if edgepp does not run from a clone."""
    top = _output("git", "-C", str(_CLONE), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _CLONE:
        return None  # installed inside the repository of another project
    return _output("git", "-C", str(_CLONE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def installed_commit() -> str | None:
    """Commit of the running clone, or of the repository that pip or uv installed from; None if neither is known."""
    if (found := commit()) is not None:
        return found
    try:
        origin = json.loads(metadata.distribution("edgepp").read_text("direct_url.json") or "{}")
        return str(origin["vcs_info"]["commit_id"])
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
