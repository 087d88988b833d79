"""The names of the package, and errors that show their next step."""

from __future__ import annotations

import pydoc
import traceback

import pytest

import edgepp
from edgepp.errors import EdgeppError


def test_an_uncaught_error_shows_what_to_do_next() -> None:
    error = EdgeppError("it is gone", "start it again")
    assert traceback.format_exception(error)[-1] == "  try: start it again\n"
    error.hint = "or leave it"
    assert traceback.format_exception(error)[-1] == "  try: or leave it\n"
    assert str(error) == "it is gone"
    error.hint = ""
    assert traceback.format_exception(error)[-1].endswith("it is gone\n")


def test_the_package_shows_its_names() -> None:
    assert set(edgepp.__all__) <= set(dir(edgepp))
    for name in edgepp.__all__:
        assert getattr(edgepp, name) is not None
    shown = pydoc.plain(pydoc.render_doc(edgepp))
    for name in set(edgepp.__all__) - {"__version__"}:
        assert name in shown
    errors = {name for name, value in vars(edgepp.errors).items() if isinstance(value, type)}
    assert errors <= set(edgepp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = edgepp.Nothing  # type: ignore[attr-defined]
