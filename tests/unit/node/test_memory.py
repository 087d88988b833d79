from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from edgepp.node import memory
from edgepp.node.memory import linux_memory, usable_memory

GB = 10**9


def machine(root: Path, groups: str, files: dict[str, str], available_kb: int = 32 * 10**6) -> Path:
    tree = {"proc/meminfo": f"MemTotal: 64000000 kB\nMemAvailable:   {available_kb} kB\n", "proc/self/cgroup": groups}
    for name, text in {**tree, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group_2(path: str, limit: int | str, used: int, inactive: int = 0) -> dict[str, str]:
    return {
        f"{path}/memory.max": f"{limit}\n",
        f"{path}/memory.current": f"{used}\n",
        f"{path}/memory.stat": f"anon 1\ninactive_file {inactive}\nactive_file 7\n",
    }


def group_1(path: str, limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    return {
        f"{path}/memory.limit_in_bytes": f"{limit}\n",
        f"{path}/memory.usage_in_bytes": f"{used}\n",
        f"{path}/memory.stat": f"inactive_file 3\ntotal_inactive_file {inactive}\n",
    }


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("groups", "files", "room"),
    [
        ("", {}, 32_768_000_000),
        ("0::/a/b\n", group_2(f"{V2}/a/b", 8 * GB, 3 * GB, 1 * GB), 6 * GB),
        ("0::/a/b\n", {**group_2(f"{V2}/a/b", "max", 3 * GB), **group_2(f"{V2}/a", 4 * GB, 3 * GB)}, 1 * GB),
        ("0::/a\n", group_2(f"{V2}/a", "max", 3 * GB), 32_768_000_000),
        ("0::/../../x\n", group_2(V2, 2 * GB, 1 * GB), 1 * GB),
        ("0::/not/mounted/here\n", group_2(V2, 2 * GB, 1 * GB), 1 * GB),
        ("9:cpu:/q\n4:memory:/q/r\n0::/\n", group_1(f"{V1}/q/r", 6 * GB, 2 * GB, 1 * GB), 5 * GB),
        ("4:cpuset,memory:/q\n", group_1(V1, 2**63 - 4096, 2 * GB), 32_768_000_000),
        ("0::/a\n", group_2(f"{V2}/a", 2 * GB, 3 * GB), 0),
    ],
)
def test_control_groups_limit_what_is_available(tmp_path: Path, groups: str, files: dict[str, str], room: int) -> None:
    assert linux_memory(machine(tmp_path, groups, files)) == room


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    machine(tmp_path, "", {})
    (tmp_path / "proc/self/cgroup").unlink()
    assert linux_memory(tmp_path) == 32_768_000_000


def test_a_reserve_stays_free_and_a_cap_only_lowers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_gpu_memory", lambda: None)
    monkeypatch.setattr(memory, "linux_memory", lambda: 4 * GB)
    monkeypatch.setattr(memory, "_LINUX", True)
    assert usable_memory() == 4 * GB - 512_000_000
    assert usable_memory(3 * GB) == 3 * GB
    assert usable_memory(99 * GB) == 4 * GB - 512_000_000
    monkeypatch.setattr(memory, "linux_memory", lambda: 100 * GB)
    assert usable_memory() == 95 * GB
    monkeypatch.setattr(memory, "linux_memory", lambda: 100)
    assert usable_memory() == 0


def _card(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """Let this machine have an NVIDIA card that MLX computes on, as far as its memory is asked for."""
    import mlx.core as mx

    monkeypatch.setattr(memory, "cuda_package", lambda: "mlx-cuda-13")
    monkeypatch.setattr(memory, "device", lambda: "cuda")
    monkeypatch.setattr(mx, "device_info", lambda _: {"free_memory": free_bytes})


def test_with_a_card_a_model_has_what_the_card_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    _card(monkeypatch, 80 * GB)
    assert usable_memory() == 76 * GB
    assert usable_memory(10 * GB) == 10 * GB
    assert memory.free_model_memory() == 76 * GB
    monkeypatch.setattr(memory, "device", lambda: "cpu")
    assert usable_memory() < 76 * GB


def test_this_machine_has_memory() -> None:
    assert 0 <= usable_memory() < psutil.virtual_memory().total
