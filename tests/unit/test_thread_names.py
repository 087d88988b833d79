"""Subclasses of ``Thread`` leave the names alone that ``Thread`` uses itself, in any supported Python."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import edgepp

OWN = {name for name in (*dir(threading.Thread), *vars(threading.Thread())) if not name.startswith("__")}
OF_OTHER_VERSIONS = {"_stop", "_handle", "_tstate_lock", "_is_stopped", "_started", "_os_thread_handle"}
MEANT_FOR_SUBCLASSES = {"run", "join", "start"}


def test_no_thread_takes_a_name_of_its_base() -> None:
    found, seen = [], 0
    for path in sorted(Path(edgepp.__file__).parent.rglob("*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if "Thread" in source else ():
            if isinstance(node, ast.ClassDef) and any("Thread" in ast.unparse(base) for base in node.bases):
                seen += 1
                taken = (_defined(node) & (OWN | OF_OTHER_VERSIONS)) - MEANT_FOR_SUBCLASSES
                found += [f"{path.name}: {node.name}.{name}" for name in sorted(taken)]
    assert seen > 5
    assert not found, found


def _defined(cls: ast.ClassDef) -> set[str]:
    """Methods of a class, and attributes that its methods assign to ``self``."""
    methods = {node.name for node in cls.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assigned = {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return methods | assigned
