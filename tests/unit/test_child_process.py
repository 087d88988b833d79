"""The import path of child processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgepp.child_process import trusted_path


def test_children_import_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "model"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), str(tmp_path), *sys.path])
    assert str(tmp_path) in trusted_path()
    assert not {"", str(here)} & set(trusted_path())
    monkeypatch.chdir(Path(pytest.__file__).parent.parent)  # the folder of installed packages
    assert str(Path.cwd()) in trusted_path()
    here.rmdir()


def test_the_current_folder_may_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert trusted_path()
