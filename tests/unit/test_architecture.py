"""The pages keep to what the code is: diagram and length of ARCHITECTURE.md, and the files and names of all pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import edgepp
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


def test_python_on_a_page_can_be_read_and_uses_names_that_there_are() -> None:
    blocks = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    assert len(blocks) > 2
    for block in blocks:
        ast.parse(block)
        assert set(re.findall(r"\bedgepp\.(\w+)", block)) <= set(edgepp.__all__)
