"""Calls that a model writes like Python: ``[get_weather(city="Paris"), now()]``, or ``search.call(query="…")``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from edgepp.tool_calls.readers import MAX_HELD, Call, CallsReader, whole
from edgepp.tool_calls.tool_use import AnswerPart, Text

_MAX_DEPTH = 50
_MAX_HEAD = 256
_MARKS = re.compile(r"\\.?|[\"'()\[\]{}]", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"|' r"'((?:[^'\\]|\\.)*+)'", re.DOTALL)
_ESCAPE = re.compile(r"\\(U000[0-9a-fA-F]{5}|U0010[0-9a-fA-F]{4}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_MAX_DIGITS = 400

T = TypeVar("T")


class PythonicCalls(CallsReader):
    """A list of calls, or one call, held back until its last bracket."""

    def __init__(self, names: tuple[str, ...], opening: str = "", closings: tuple[str, ...] = ()) -> None:
        """Prepare to read; the arguments are a ``CallsReader``'s."""
        super().__init__(names, opening, closings)
        self._ended = False
        self._held: list[str] = []
        self._length = 0
        self._head = ""
        self._is_call = False
        self._end = _BracketScanner()

    def _add(self, text: str) -> list[AnswerPart]:
        if self._ended:
            return self._close(text)
        if not self._is_call:
            text, self._head = self._head + text, ""
            self._is_call, may_become = _begins(text, self._names)
            if not self._is_call and not may_become:
                return self._no_call(text)
            if not self._is_call:
                self._head = text
                return []
        end = self._end.find(text)
        self._held.append(text[:end])
        self._length += end
        if self._end.found:
            calls = parse("".join(self._held), self._names)
            if calls is None:
                return self._release("", text[end:])
            self._ended, self._head = True, ""
            return [*(part for call in calls for part in whole(call)), *self._close(text[end:])]
        return self._release("", "") if self._length > MAX_HELD else []

    def _finish(self) -> list[AnswerPart]:
        if self._ended:
            return []
        return self._release("" if self._is_call else self._head, "")

    def _close(self, text: str) -> list[AnswerPart]:
        """Skip the closing behind the calls."""
        text, self._head = self._head + text, ""
        begun = text.lstrip()
        for closing in self._closings:
            if begun.startswith(closing):
                self.rest = begun[len(closing) :]
                return []
        if any(closing.startswith(begun) for closing in self._closings) and len(text) < _MAX_HEAD:
            self._head = text
        else:
            self.rest = text
        return []

    def _no_call(self, text: str) -> list[AnswerPart]:
        """Give back text that begins no call; all but its first character is read again."""
        if self._opening:
            return self._release("", text)
        return self._release(text[:1], text[1:])

    def _release(self, text: str, rest: str) -> list[AnswerPart]:
        self.rest = rest
        return [Text("".join([self._opening, *self._held, text]))]


def parse(text: str, names: tuple[str, ...]) -> list[Call] | None:
    """The calls in ``text``; None if the text is not one call or a list of calls of ``names``."""
    reader = _Values(text)
    try:
        calls = reader.calls()
    except (_NotPythonError, RecursionError):
        return None
    named = [(_known(name, names), arguments) for name, arguments in calls]
    return [(name, arguments) for name, arguments in named if name is not None] if all(n for n, _ in named) else None


def literal(text: str) -> Any:
    """The value of ``text`` as a literal of Python or JSON; None if it is none."""
    try:
        return _Values(text).value()
    except (_NotPythonError, RecursionError):
        return None


def _known(name: str, names: tuple[str, ...]) -> str | None:
    """The tool that ``name`` means, which may be written with ``.call``."""
    if name in names:
        return name
    short = name.removesuffix(".call")
    return short if short in names else None


def _begins(text: str, names: tuple[str, ...]) -> tuple[bool, bool]:
    """Whether a call begins in ``text``, and whether a call may begin with more text."""
    head = text.lstrip().removeprefix("[").lstrip()
    if not head:
        return False, len(text) < _MAX_HEAD
    found = _NAME.match(head)
    if found is None:
        return False, False
    if found.end() == len(head):
        return False, any(f"{name}.call".startswith(head) for name in names)
    follows = head[found.end() :].lstrip()
    is_call = _known(found[0], names) is not None and follows.startswith("(")
    return is_call, _known(found[0], names) is not None and not follows and len(text) < _MAX_HEAD


class _BracketScanner:
    """Search for the end of the outermost bracket, in pieces of text."""

    def __init__(self) -> None:
        self.found = False
        self._depth = 0
        self._quote = ""
        self._escape = ""

    def find(self, text: str) -> int:
        """The place behind the bracket that closes the first one, or the length of ``text``."""
        begin = 1 if self._escape else 0
        self._escape = ""
        for found in _MARKS.finditer(text, begin):
            if found[0] == "\\":
                self._escape = found[0]
            elif self._take(found[0]):
                self.found = True
                return found.end()
        return len(text)

    def _take(self, mark: str) -> bool:
        if self._quote:
            self._quote = "" if mark == self._quote else self._quote
        elif mark in "\"'":
            self._quote = mark
        elif mark in "([{":
            self._depth += 1
        elif mark in ")]}":
            self._depth -= 1
            return self._depth <= 0
        return False


class _NotPythonError(ValueError):
    """The text does not have the form of calls."""


class _Values:
    """Parser of calls and of literals of Python or JSON."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def calls(self) -> list[Call]:
        """All calls, up to the end of the text."""
        calls = self._list("]", self._call) if self._take("[") else [self._call(0)]
        self._check_end()
        return calls

    def value(self) -> Any:
        """The one value that the text is."""
        value = self._value(0)
        self._check_end()
        return value

    def _check_end(self) -> None:
        self._skip()
        if self._at < len(self._text):
            raise _NotPythonError

    def _call(self, depth: int) -> Call:
        name = self._match(_NAME)
        self._expect("(")
        return name, dict(self._list(")", self._argument, depth))

    def _argument(self, depth: int) -> tuple[str, Any]:
        key = self._match(_NAME)
        self._expect("=")
        return key, self._value(depth)

    def _value(self, depth: int) -> Any:
        self._skip()
        if depth > _MAX_DEPTH:
            raise _NotPythonError
        character = self._text[self._at : self._at + 1]
        if character and character in "\"'":
            return self._string()
        if self._take("["):
            return self._list("]", self._value, depth)
        if self._take("("):
            return self._list(")", self._value, depth)
        if self._take("{"):
            return dict(self._list("}", self._item, depth))
        if found := _NUMBER.match(self._text, self._at):
            self._at = found.end()
            return _number(found[0])
        word = self._match(_NAME)
        if word not in _WORDS:
            raise _NotPythonError
        return _WORDS[word]

    def _item(self, depth: int) -> tuple[str, Any]:
        self._skip()
        key = self._string()
        self._expect(":")
        return key, self._value(depth)

    def _string(self) -> str:
        found = _STRING.match(self._text, self._at)
        if found is None:
            raise _NotPythonError
        self._at = found.end()
        text = _ESCAPE.sub(_unescaped, found[1] if found[1] is not None else found[2])
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs joined, halves replaced

    def _list(self, closing: str, element: Callable[[int], T], depth: int = 0) -> list[T]:
        elements: list[T] = []
        while not self._take(closing):
            if elements:
                self._expect(",")
                if self._take(closing):
                    break
            elements.append(element(depth + 1))
        return elements

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._skip()
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _NotPythonError
        self._at = found.end()
        return found[0]

    def _take(self, character: str) -> bool:
        self._skip()
        taken = self._text.startswith(character, self._at)
        self._at += len(character) if taken else 0
        return taken

    def _expect(self, character: str) -> None:
        if not self._take(character):
            raise _NotPythonError

    def _skip(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1


def _number(text: str) -> int | float:
    if len(text) > _MAX_DIGITS:
        raise _NotPythonError
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not math.isfinite(number):
        raise _NotPythonError
    return number


def _unescaped(found: re.Match[str]) -> str:
    escape = found[1]
    if len(escape) > 1:
        return chr(int(escape[1:], 16))
    return _ESCAPES.get(escape, escape if escape in "\\\"'/" else "\\" + escape)
