"""The branches of docs/macos.md that nothing else exercises, with the system's answer faked at its boundary."""

from __future__ import annotations

import os
import platform
import resource
import runpy
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from edgepp import child_process, crash_report
from edgepp.backend import device as devices
from edgepp.backend.base import BackendOptions
from edgepp.backend.mlx import backend as mlx_backend
from edgepp.backend.mlx import stage as mlx_stage
from edgepp.benchmark import machine
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node import memory, warming
from edgepp.ui import doctor, version

WORKING_SET = 11_453_251_584
"""What Metal recommends on a Mac with 16 GB."""


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own answers on a Mac."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))


@pytest.fixture
def metal(mac: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """MLX's answers on Apple silicon; the limits that are set."""
    limits: dict[str, int] = {}
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"max_recommended_working_set_size": WORKING_SET})
    monkeypatch.setattr(mx, "get_active_memory", lambda: 1 << 30)
    for name in ("set_wired_limit", "set_cache_limit"):
        monkeypatch.setattr(mx, name, lambda value, name=name: limits.__setitem__(name, value))
    return limits


def module(name: str) -> dict[str, Any]:
    """The names of a module as they are where it is imported on this system."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return runpy.run_path(spec.origin, run_name=name)


def test_mlx_computes_on_metal(metal: dict[str, int]) -> None:
    assert devices.device() == "metal"
    assert devices.has_gpu()
    assert "metal" in devices.GPUS


def test_a_model_may_use_what_metal_recommends(metal: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.usable_memory() == WORKING_SET
    assert memory.usable_memory(1 << 30) == 1 << 30
    monkeypatch.setattr(mx, "device_info", lambda *_: {})
    assert memory._gpu_memory() is None


def test_the_weights_are_wired_within_what_metal_recommends(
    metal: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlx_backend._limit_memory()
    assert metal == {"set_wired_limit": 3 << 30, "set_cache_limit": 1 << 29}
    monkeypatch.setattr(mx, "get_active_memory", lambda: 1 << 40)
    mlx_backend._limit_memory()
    assert metal["set_wired_limit"] == WORKING_SET


def test_a_stage_on_metal_takes_longer_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, TINY)
    checkpoint = Checkpoint.open(tmp_path)
    monkeypatch.setattr(mlx_stage, "_CHUNKS", {name: 3 + len(name) for name in ("cpu", *devices.GPUS)})
    stage = mlx_backend.MlxBackend().load_stage(
        checkpoint, LayerRange(0, checkpoint.num_layers), BackendOptions(exact=True)
    )
    assert stage.chunk == 3 + len(stage.device)
    assert mlx_stage._CHUNKS.keys() == {"cpu", *devices.GPUS}


def test_memory_is_what_psutil_says(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module("edgepp.node.memory")["_LINUX"] is False
    monkeypatch.setattr(memory, "_LINUX", False)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 << 30))
    assert 0 < memory.free_memory() < 16 << 30


def test_the_processor_is_named_by_sysctl(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(machine, "_output", lambda *command: asked.append(command) or "Apple M4")
    about = machine.machine()
    assert (about["cpu"], about["system"]) == ("Apple M4", "Darwin arm64")
    assert asked[0] == ("sysctl", "-n", "machdep.cpu.brand_string")


def test_the_version_and_the_system_of_a_mac_are_told(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "commit", lambda: None)
    told = version.facts()["platform"]
    assert told == {"system": "Darwin", "release": "15.5", "machine": "arm64", "libc": None}
    assert "Darwin arm64" in doctor.versions().found
    assert "Darwin" in crash_report.report_text(ValueError("x"))


def test_no_c_library_is_asked_for(mac: None) -> None:
    assert doctor.glibc().ok is True
    assert "Darwin" in doctor.glibc().found


def test_no_limit_of_the_address_space_is_set(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    limited: list[int] = []
    monkeypatch.setattr(resource, "setrlimit", lambda what, _: limited.append(what))
    child_process.limit_memory(1 << 30)
    assert limited == [resource.RLIMIT_CORE]


def test_warming_leaves_the_priority_of_the_process_alone(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[int] = []
    monkeypatch.setattr(os, "setpriority", lambda *arguments: changed.append(arguments[2]))
    warmer = warming.LayerWarmer(lambda: False)
    warmer.start()
    warmer.close()
    assert changed == [], "on a Mac it would be that of all threads"


def test_a_stage_gets_no_variable_of_the_c_library_of_linux(mac: None) -> None:
    assert module("edgepp.stage_process.compute_policy")["_HUGE_PAGES"] == {}


def test_received_bytes_are_read_from_the_structure_of_macos(mac: None) -> None:
    level, option, length, offset = module("edgepp.wire.connection_limits")["_RECEIVED"]
    assert (level, option) == (socket.IPPROTO_TCP, 0x106)  # TCP_CONNECTION_INFO
    # struct tcp_connection_info: 4 bytes, 13 words of 4 bytes, then txpackets, txbytes, txretransmitbytes, rxpackets
    assert offset == 4 + 13 * 4 + 4 * 8
    assert length >= offset + 8
