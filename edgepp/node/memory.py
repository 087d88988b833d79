"""Memory that this machine has for a model, as of now."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from edgepp.backend.device import cuda_package, device

_RESERVE_BYTES = 512_000_000
_RESERVE_DIVISOR = 20
"""The memory left to other programs is the larger of 512 MB and a twentieth of the available memory."""
_LINUX = platform.system() == "Linux"


def usable_memory(cap_bytes: int | None = None) -> int:
    """Bytes of memory for a model on this machine now, at most ``cap_bytes``.

    On Apple silicon, the working set that Metal recommends. With MLX's build for CUDA, the free memory of the card
    without a reserve. Elsewhere, the available memory without a reserve; on Linux within the limits of the control
    groups of this process.
    """
    found = _gpu_memory()
    if found is None:
        found = free_memory()
    return found if cap_bytes is None else min(found, cap_bytes)


def free_memory() -> int:
    """Bytes of memory available now, without a reserve; on Linux within the control groups of this process."""
    return _without_reserve(linux_memory() if _LINUX else psutil.virtual_memory().available)


def free_model_memory() -> int:
    """Bytes free now where stages hold their weights, without a reserve: on an NVIDIA card, or as ``free_memory``."""
    card = _gpu_memory() if cuda_package() is not None else None
    return free_memory() if card is None else card


def _without_reserve(free: int) -> int:
    return max(0, free - max(_RESERVE_BYTES, free // _RESERVE_DIVISOR))


def _gpu_memory() -> int | None:
    """Bytes for a model on the GPU of this machine; None without a GPU. Not run on Apple silicon yet."""
    if platform.system() != "Darwin" and cuda_package() is None:
        return None  # without the import of MLX, which takes a second
    import mlx.core as mx

    match device():
        case "metal":
            return int(mx.device_info().get("max_recommended_working_set_size", 0)) or None
        case "cuda":
            return _without_reserve(int(mx.device_info(mx.gpu)["free_memory"]))
    return None


def linux_memory(root: Path = Path("/")) -> int:
    """Bytes available to this process: the kernel's estimate, or less where a control group leaves less.

    ``root`` is the folder with ``proc`` and ``sys``.
    """
    meminfo = (root / "proc/meminfo").read_text(encoding="ascii")
    match = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    available = int(match[1]) * 1024 if match else psutil.virtual_memory().available
    return max(0, min([available, *_cgroup_rooms(root)]))


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Bytes left in each control group with a limit that this process is in, of version 1 or 2.

    Inactive file pages, which the kernel can drop at once, count as free.
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
        for depth in range(len(inner), -1, -1):  # in a container, the own group may appear as the root
            room = _cgroup_room(top.joinpath(*inner[:depth]), *names)
            if room is not None:
                yield room


def _cgroup_room(group: Path, limit: str, used: str, droppable: str) -> int | None:
    try:
        limit_text = (group / limit).read_text(encoding="ascii").strip()
        used_bytes = int((group / used).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    match = re.search(rf"^{droppable} (\d+)$", stat, re.MULTILINE)
    return None if limit_text == "max" else int(limit_text) - used_bytes + (int(match[1]) if match else 0)
