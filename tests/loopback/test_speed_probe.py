"""The speed probe in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from edgepp.errors import EdgeppError
from edgepp.node import resources
from edgepp.node.resources import measure, run_probe
from tests.waiting import PATIENCE_S

SPEED = {
    "backend": "onnx",
    "device": "cpu",
    "stream_bytes_per_s": 5.0,
    "flops_per_s": 7.0,
    "half_s": 0.5,
    "contended": False,
}


def test_the_probe_measures_once_and_is_measured_again_when_its_record_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_CACHE", str(tmp_path))
    first = measure("onnx", 2)
    assert (first.backend, first.device, first.threads) == ("onnx", "cpu", 2)
    assert 1e7 < first.stream_bytes_per_s < 1e13
    assert 1e8 < first.flops_per_s < 1e16
    assert 0 <= first.half_s < math.inf

    runs: list[tuple[str, int, bool]] = []

    def fake(backend: str, threads: int, exact: bool, _: object) -> dict[str, object]:
        runs.append((backend, threads, exact))
        return SPEED

    (record,) = tmp_path.glob("speed/*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "contended": False}))  # tests run side by side
    monkeypatch.setattr(resources, "run_probe", fake)
    again = measure("onnx", 2)
    assert (again.stream_bytes_per_s, again.flops_per_s, runs) == (first.stream_bytes_per_s, first.flops_per_s, [])
    whole = json.loads(record.read_text())
    for damaged in (
        "", "{", "[]", "null", "\udcff", json.dumps({**whole, "flops_per_s": -1.0}),
        json.dumps({**whole, "flops_per_s": math.nan}), json.dumps({**whole, "device": 3}),
        json.dumps({name: value for name, value in whole.items() if name != "half_s"}),
        json.dumps({**whole, "half_s": -1.0}), json.dumps({**whole, "contended": 1}),
    ):  # fmt: skip
        record.write_bytes(damaged.encode("utf-8", "surrogateescape"))
        runs.clear()
        assert measure("onnx", 2).stream_bytes_per_s == 5.0
        assert len(runs) == 1
    assert json.loads(record.read_text())["stream_bytes_per_s"] == 5.0
    assert measure("onnx", 1).threads == 1
    measure("onnx", 2, exact=True)
    assert runs[1:] == [("onnx", 1, False), ("onnx", 2, True)]


def test_what_was_measured_beside_busy_programs_is_measured_again_until_it_was_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_CACHE", str(tmp_path))
    answers = [
        {**SPEED, "contended": True},
        {**SPEED, "contended": True, "stream_bytes_per_s": 4.0, "flops_per_s": 9.0, "half_s": 0.25},
        {**SPEED, "stream_bytes_per_s": 6.0, "flops_per_s": 8.0, "half_s": 0.5},
    ]
    monkeypatch.setattr(resources, "run_probe", lambda *_: answers.pop(0))
    found = [measure("onnx", 2) for _ in range(4)]  # the last one is the third from the cache
    assert [(one.stream_bytes_per_s, one.flops_per_s, one.half_s) for one in found] == [
        (5.0, 7.0, 0.5),
        (5.0, 9.0, 0.25),
        (6.0, 8.0, 0.5),
        (6.0, 8.0, 0.5),
    ]


def test_a_backend_that_does_not_exist_is_reported() -> None:
    with pytest.raises(EdgeppError, match="there is no backend 'abacus'"):
        run_probe("abacus", 1, False)


def test_a_probe_ends_when_its_parent_does_and_takes_its_checkpoint_along(tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "edgepp.stage_process.speed_probe"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    config = {"folder": str(folder), "backend": "onnx", "threads": 1, "exact": False}
    child.communicate(json.dumps(config).encode() + b"\n", timeout=PATIENCE_S)
    assert child.returncode == 1
    assert not folder.exists()


def test_a_probe_that_dies_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false" if Path("/bin/false").exists() else "/usr/bin/false")
    with pytest.raises(EdgeppError, match="the speed probe ended without an answer"):
        run_probe("onnx", 1, False)
