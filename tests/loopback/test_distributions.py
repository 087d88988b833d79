"""The wheel and the source distribution: the same bytes whoever builds, and complete."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.builders.distributions import ROOT, build_twice


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is no clone, so its files are not known")
    return build_twice(tmp_path_factory.mktemp("built"), epoch_s=1_750_000_000)


def test_two_builds_are_the_same_bytes(built: dict[str, bytes]) -> None:
    assert len(built) == 2


def test_the_wheel_holds_every_module_the_models_and_no_test(built: dict[str, bytes]) -> None:
    (wheel,) = (data for name, data in built.items() if name.endswith(".whl"))
    names = set(zipfile.ZipFile(io.BytesIO(wheel)).namelist())
    tracked = subprocess.run(["git", "ls-files", "edgepp"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {name for name in tracked.splitlines() if (ROOT / name).is_file()} <= names
    assert {f"edgepp/model/catalogue/models/{card.name}" for card in (ROOT / "models").iterdir()} <= names
    assert not {name for name in names if not name.startswith(("edgepp/", "edgepp-"))}


def test_the_source_distribution_builds_the_wheel(built: dict[str, bytes], tmp_path: Path) -> None:
    from tests.builders.distributions import build

    (name,) = (name for name in built if name.endswith(".gz"))
    with tarfile.open(fileobj=io.BytesIO(built[name])) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / name.removesuffix(".tar.gz"), tmp_path / "out", epoch_s=1_750_000_000)
    (wheel,) = (name for name in built if name.endswith(".whl"))
    assert again[wheel] == built[wheel]
