"""The JSON text of one object, checked and passed on as it comes."""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_DEPTH = 100
"""Limit of objects and arrays inside each other."""
_MAX_SCALAR = 1024
"""Limit of the characters of a number or literal."""
_WHITE = frozenset(" \t\n\r")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r'[^\s,:"\[\]{}]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LITERALS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_CLOSING = {"{": "}", "[": "]"}
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


class JsonObjectStream:
    """Parser of one JSON object in pieces of text, in constant time per character.

    The text is passed on as it came, except for mistakes of models that JSON or Unicode forbids: control characters
    inside strings are escaped, backslashes that escape nothing are doubled, halves of surrogate pairs become U+FFFD,
    and Python's True, False and None become JSON's.
    """

    def __init__(self) -> None:
        self._done = False
        self._open: list[str] = []
        self._step: Callable[[str, int, list[str]], int] = self._begin
        self._scalar = ""
        self._digits = ""
        self._half = ""
        """The escape of the first half of a surrogate pair."""
        self._is_key = False

    @classmethod
    def after_a_value(cls) -> JsonObjectStream:
        """A stream that stands behind the value of a key of the outermost object."""
        stream = cls()
        stream._open = ["{"]
        stream._step = stream._after_value
        return stream

    def add(self, text: str) -> tuple[str, str | None]:
        """The JSON text of the object in ``text``, and the text behind the object, or None while the object goes on.

        Raises:
            BrokenJsonError: the text is not JSON; the error has the JSON text of this piece and the place of the fault.
        """
        out: list[str] = []
        at = 0
        while at < len(text) and not self._done:
            try:
                at = self._step(text, at, out)
            except ValueError as error:
                raise BrokenJsonError(str(error), "".join(out), at) from None
        return "".join(out), text[at:] if self._done else None

    def _begin(self, text: str, at: int, out: list[str]) -> int:
        if text[at] in _WHITE:
            return at + 1
        if text[at] != "{":
            raise ValueError("an object begins with {")
        return self._push(text[at], at, out)

    def _push(self, bracket: str, at: int, out: list[str]) -> int:
        if len(self._open) >= MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} objects and arrays are inside each other")
        self._open.append(bracket)
        self._step = self._first_key if bracket == "{" else self._first_value
        out.append(bracket)
        return at + 1

    def _pop(self, bracket: str, at: int, out: list[str]) -> int:
        if _CLOSING[self._open.pop()] != bracket:
            raise ValueError(f"{bracket} closes nothing")
        self._step = self._after_value
        self._done = not self._open
        out.append(bracket)
        return at + 1

    def _first_key(self, text: str, at: int, out: list[str]) -> int:
        return self._pop("}", at, out) if text[at] == "}" else self._key(text, at, out)

    def _key(self, text: str, at: int, out: list[str]) -> int:
        if text[at] in _WHITE:
            return _pass_on(text, at, out)
        if text[at] != '"':
            raise ValueError("a key is a string")
        return self._quote(at, out, is_key=True)

    def _colon(self, text: str, at: int, out: list[str]) -> int:
        if text[at] not in _WHITE:
            if text[at] != ":":
                raise ValueError("a colon follows a key")
            self._step = self._value
        return _pass_on(text, at, out)

    def _first_value(self, text: str, at: int, out: list[str]) -> int:
        return self._pop("]", at, out) if text[at] == "]" else self._value(text, at, out)

    def _value(self, text: str, at: int, out: list[str]) -> int:
        character = text[at]
        if character in _WHITE:
            return _pass_on(text, at, out)
        if character in "{[":
            return self._push(character, at, out)
        if character == '"':
            return self._quote(at, out, is_key=False)
        self._scalar = ""
        self._step = self._in_scalar
        return at

    def _in_scalar(self, text: str, at: int, out: list[str]) -> int:
        if found := _SCALAR.match(text, at):
            self._scalar += found[0]
            if len(self._scalar) > _MAX_SCALAR:
                raise ValueError("a number is too long")
            return found.end()
        scalar = _LITERALS.get(self._scalar) or (self._scalar if _NUMBER.fullmatch(self._scalar) else "")
        if not scalar:
            raise ValueError(f"{self._scalar[:20]!r} is no value")
        out.append(scalar)
        self._step = self._after_value
        return at

    def _after_value(self, text: str, at: int, out: list[str]) -> int:
        character = text[at]
        if character in "}]":
            return self._pop(character, at, out)
        if character not in _WHITE:
            if character != ",":
                raise ValueError("a comma stands between values")
            self._step = self._key if self._open[-1] == "{" else self._value
        return _pass_on(text, at, out)

    def _quote(self, at: int, out: list[str], is_key: bool) -> int:
        out.append('"')
        self._is_key = is_key
        self._step = self._in_string
        return at + 1

    def _in_string(self, text: str, at: int, out: list[str]) -> int:
        if text[at] == "\\":
            self._step = self._escape
            return at + 1
        self._drop_half(out)
        if found := _PLAIN.match(text, at):
            out.append(found[0])
            return found.end()
        character = text[at]
        if character == '"':
            self._step = self._colon if self._is_key else self._after_value
        else:
            character = _ESCAPES.get(character, f"\\u{ord(character):04x}")
        out.append(character)
        return at + 1

    def _escape(self, text: str, at: int, out: list[str]) -> int:
        if text[at] == "u":
            self._digits = ""
            self._step = self._hexadecimal
            return at + 1
        self._drop_half(out)
        self._step = self._in_string
        if text[at] in '"\\/bfnrt':
            out.append("\\" + text[at])
            return at + 1
        out.append("" if text[at] == "'" else "\\\\")
        return at

    def _hexadecimal(self, text: str, at: int, out: list[str]) -> int:
        if text[at] not in "0123456789abcdefABCDEF":
            raise ValueError("\\u wants four hexadecimal digits")
        self._digits += text[at]
        if len(self._digits) == 4:
            self._unit(int(self._digits, 16), out)
            self._step = self._in_string
        return at + 1

    def _unit(self, unit: int, out: list[str]) -> None:
        """Pass on a unit of UTF-16: the second half of a pair with the first, and a half alone as U+FFFD."""
        escape = "\\u" + self._digits
        if 0xDC00 <= unit < 0xE000 and self._half:
            out.append(self._half + escape)
            self._half = ""
            return
        self._drop_half(out)
        if 0xD800 <= unit < 0xDC00:
            self._half = escape
        else:
            out.append("\\ufffd" if 0xDC00 <= unit < 0xE000 else escape)

    def _drop_half(self, out: list[str]) -> None:
        if self._half:
            out.append("\\ufffd")
            self._half = ""


class BrokenJsonError(ValueError):
    """Text that is not JSON; ``passed`` is the JSON text of the last piece, ``at`` the index of the fault in it."""

    def __init__(self, reason: str, passed: str, at: int) -> None:
        super().__init__(reason)
        self.passed = passed
        self.at = at


def _pass_on(text: str, at: int, out: list[str]) -> int:
    out.append(text[at])
    return at + 1
