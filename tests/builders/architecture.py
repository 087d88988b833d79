"""Diagram of the rooms in ARCHITECTURE.md, drawn from the contract that ``make check`` enforces.

``python -m tests.builders.architecture`` (``make diagram``) writes the diagram; a test fails where it is out of date.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BEGIN, _END = "<!-- rooms -->\n", "<!-- /rooms -->"
_WIDTH = 120


def layers() -> list[list[str]]:
    """Names of the rooms, the highest layer first; rooms of one layer do not know each other."""
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in layer.split(":")] for layer in contract["layers"]]


def diagram() -> str:
    """One line or two per room: its name and the first sentence of its docstring, the layers from top to bottom."""
    rows = []
    margin = max(len(room) for layer in layers() for room in layer) + 4
    for layer in layers():
        for number, room in enumerate(layer):
            mark = "" if len(layer) == 1 else "┌" if number == 0 else "└" if number == len(layer) - 1 else "│"
            rows += textwrap.wrap(
                f"{mark:2}{room}".ljust(margin) + _sentence(room), _WIDTH, subsequent_indent=" " * margin
            )
    return "```\n" + "\n".join(rows) + "\n```\n"


def with_diagram(text: str) -> str:
    """``text`` of ARCHITECTURE.md with the diagram between its two marks."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + diagram() + _END + after


def _sentence(room: str) -> str:
    folder = _ROOT / "edgepp" / room
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    first = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", first)[0]


if __name__ == "__main__":
    page = _ROOT / "ARCHITECTURE.md"
    page.write_text(with_diagram(page.read_text()))
