"""docs/macos.md lists each place of the code that is different on a Mac, with a test that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "macos.md").read_text()
NAMES = {"darwin", "metal"}
CALLS = {"sys.platform", "platform.system", "platform.mac_ver", "platform.uname", "os.uname", "mx.metal"}
ATTRIBUTES = {call.rpartition(".")[2] for call in CALLS}
MENTIONS = re.compile("|".join((*NAMES, *ATTRIBUTES)), re.IGNORECASE)


def branches(source: str) -> Iterator[str]:
    """The name of each function, class or module level that asks for the system, or names macOS or Metal."""

    def visit(node: ast.AST, place: str) -> Iterator[str]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            place = f"{place}.{node.name}" if place else node.name
        elif (isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES and ast.unparse(node) in CALLS) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in NAMES
        ):
            yield place
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place)

    if MENTIONS.search(source):  # only the files that may have a branch are worth parsing
        yield from visit(ast.parse(source), "")


def found() -> set[tuple[str, str]]:
    files = sorted((ROOT / "edgepp").rglob("*.py"))
    return {
        (str(path.relative_to(ROOT / "edgepp")), place or "(module)")
        for path in files
        for place in branches(path.read_text())
    }


def rows() -> list[tuple[str, str, str]]:
    """File, place and test of each row of the table."""
    listed = re.findall(r"^\| `edgepp/([^`]+)` \| `([^`]+)` \|.*\| `([^`]+)` \|$", PAGE, re.MULTILINE)
    return [(file, place, test) for file, place, test in listed]


def test_every_branch_is_listed_and_every_row_is_a_branch() -> None:
    listed = [(file, place) for file, place, _ in rows()]
    assert len(listed) == len(set(listed))
    branches_now = found()
    assert branches_now - set(listed) == set(), (
        "add these to docs/macos.md, each with a test that fakes the system's call"
    )
    assert set(listed) - branches_now == set(), "remove these from docs/macos.md"


@pytest.mark.parametrize("test", sorted({test for _, _, test in rows()}))
def test_the_test_of_a_row_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("def f():\n    return sys.platform == 'linux'", "f"),
        ("class A:\n    def f(self):\n        if platform.system() != 'x': pass", "A.f"),
        ("MAC = {'darwin': 1}", ""),
        ("match device:\n    case 'metal': pass", ""),
        ("def f():\n    return mx.metal.is_available()", "f"),
    ],
)
def test_a_branch_is_found(source: str, place: str) -> None:
    assert place in set(branches(source))


def test_a_mention_in_prose_is_no_branch() -> None:
    assert not list(branches('"""What Metal and darwin do."""\n# sys.platform\nx = "on Metal"'))
