"""Calls written like Python: literals alone are read, and nothing is run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.tool_calls.pythonic_calls import parse

NAMES = ("f", "g.h", "look-up")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), VALUES, max_size=3))
def test_literals_of_python_are_read_as_python_reads_them(arguments) -> None:
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    assert parse(f"[f({written}), g.h()]", NAMES) == [("f", arguments), ("g.h", {})]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("f()", [("f", {})]),
        ('f.call(query="a")', [("f", {"query": "a"})]),
        ("[f(a=true, b=null, c=(1, 2),)]", [("f", {"a": True, "b": None, "c": [1, 2]})]),
        ("[look-up(a=-1.5e3, b='it\\'s')]", [("look-up", {"a": -1500.0, "b": "it's"})]),
        ('[f(a="\\u00e9\\x41\\d")]', [("f", {"a": "éA\\d"})]),
    ],
)
def test_calls_are_read(text, calls) -> None:
    assert parse(text, NAMES) == calls


@pytest.mark.parametrize(
    "text",
    [
        "[f(1)]",
        "[f(a=__import__('os'))]",
        "[f(a=1 + 1)]",
        "[f(a=open)]",
        "[f(**{})]",
        "[unknown()]",
        "[f(a=1), unknown()]",
        "[f(a='x]",
        "[f(a={1: 2})]",
        "[f()] and more",
        "[f(a=1e999)]",
        "[f(a=" + "[" * 1000 + "]" * 1000 + ")]",
        "[f(a=" + "9" * 5000 + ")]",
        "",
    ],
)
def test_anything_else_is_no_call(text) -> None:
    assert parse(text, NAMES) is None or parse(text, NAMES) == []
