"""How a report names the model that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepp.benchmark.target import shown


def test_a_folder_has_a_name_however_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny"
    (folder / "below").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for given in (".", "./", "~", str(folder), f"{folder}/"):
        assert shown(given) == "tiny"
    monkeypatch.chdir(folder / "below")
    assert shown("..") == "tiny"
    assert shown("org/name") == "org/name"
