"""ARCHITECTURE.md keeps to what the code is: its diagram, its length, and the files that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.builders.architecture import layers, with_diagram

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_diagram_is_the_contract() -> None:
    assert with_diagram(PAGE) == PAGE, "run `make diagram`"


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    rooms = {room for layer in layers() for room in layer}
    named = re.findall(r"`(?:edgepp/)?([a-z_0-9]+(?:/[a-z_0-9]+)+)/?(?:\.py)?`", page.read_text())
    inside = {name for name in named if name.split("/")[0] in rooms}
    assert not {name for name in inside if not list((ROOT / "edgepp").glob(f"{name}*"))}
