"""What a benchmark report says of the code that was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgepp.benchmark import machine


def test_a_commit_is_told_of_a_clone_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "venv"
    installed.mkdir()
    monkeypatch.setattr(machine, "_CLONE", installed)
    assert machine.commit() is None
