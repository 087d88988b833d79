"""Bounds of a JSON text, checked before it is decoded: levels, and values, each of which costs an object."""

from __future__ import annotations

import re

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_QUOTES_PER_VALUE = 4  # two around each text, and some within
_STRUCTURE = b"[]{},"
_REST = bytes(sorted(set(range(256)) - set(_STRUCTURE)))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def exceeds(text: bytes, max_levels: int, max_values: int) -> str | None:
    """Sentence on the bound that ``text`` exceeds; None where the text is within the bounds, or is no JSON."""
    if sum(text.count(mark) for mark in (b"[", b"{")) <= max_levels and text.count(b",") <= max_values:
        return None
    too_many = f"the body has more than {max_values} values"
    if text.count(b'"') > _QUOTES_PER_VALUE * max_values:
        return too_many
    structure = _STRING.sub(b"", text).translate(None, _REST)
    if len(structure) > max_values:
        return too_many
    brackets = structure.translate(_ONE_KIND, b",")
    for _ in range(max_levels):
        if not brackets:
            return None
        inner = brackets.replace(b"[]", b"")  # one level less
        if len(inner) == len(brackets):
            return None  # unbalanced, so no JSON
        brackets = inner
    return f"the body is nested deeper than {max_levels} levels" if brackets else None
