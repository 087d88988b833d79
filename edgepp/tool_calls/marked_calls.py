"""Calls between markers, and calls whose name stands in front of their arguments."""

from __future__ import annotations

import re
from collections.abc import Callable

from edgepp.tool_calls.json_calls import Arguments, JsonCalls
from edgepp.tool_calls.pythonic_calls import PythonicCalls
from edgepp.tool_calls.readers import MAX_HELD, Call, Reader, whole
from edgepp.tool_calls.tool_use import AnswerPart, Text

_MAX_HEAD = 256
_NOT_NAME = re.compile(r"[^\w.:/-]")


class AnyCalls(Reader):
    """Calls in whichever form follows: as JSON, as a name and JSON, or like Python."""

    def __init__(
        self,
        names: tuple[str, ...],
        opening: str = "",
        closings: tuple[str, ...] = (),
        head: re.Pattern[str] | None = None,
    ) -> None:
        """Prepare to read; ``head`` as in ``NamedCalls``, the rest as in ``JsonCalls``."""
        self._names = names
        self._opening = opening
        self._closings = closings
        self._head = head
        self._held = ""
        self._inner: Reader | None = None

    def _add(self, text: str) -> list[AnswerPart]:
        if self._inner is None:
            text, self._held = self._held + text, ""
            first = text.lstrip(" \t\r\n[")[:1]
            if not first and len(text) < _MAX_HEAD:
                self._held = text
                return []
            self._inner = self._reader(first)
        parts = self._inner.add(text)
        self.rest = self._inner.rest
        return parts

    def _reader(self, first: str) -> Reader:
        if first in ("{", ""):
            return JsonCalls(self._names, self._opening, self._closings)
        if self._head is not None:
            return NamedCalls(self._names, self._opening, self._head)
        return PythonicCalls(self._names, self._opening, self._closings)

    def _finish(self) -> list[AnswerPart]:
        held = self._opening + self._held
        return self._inner.finish() if self._inner else [Text(held)] if held else []


class NamedCalls(Reader):
    """Calls as a name and the JSON of its arguments, such as ``get_weather[ARGS]{…}``, one or more."""

    def __init__(self, names: tuple[str, ...], opening: str, head: re.Pattern[str], closing: str = "") -> None:
        """Prepare to read.

        Args:
            names: The tools that may be called.
            opening: The text in front, already read, which is text too if no call follows.
            head: The text in front of the arguments; its first group is the name.
            closing: The text behind each call's arguments.
        """
        self._names = names
        self._gap = opening
        self._head = head
        self._closing = closing
        self._called = False
        self._held = ""
        self._arguments: Arguments | None = None

    def _add(self, text: str) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        while self.rest is None and text:
            if self._arguments is None:
                text = self._read_head(text, parts)
                continue
            parts += self._arguments.add(text)
            text = self._arguments.rest or ""
            if self._arguments.rest is not None:
                self._arguments, self._called, self._gap = None, True, ""
        return parts

    def _finish(self) -> list[AnswerPart]:
        if self._arguments is not None:
            return self._arguments.finish()
        held = self._gap + self._held
        return [] if self._called and not self._held.strip() else [Text(held)] if held else []

    def _read_head(self, text: str, parts: list[AnswerPart]) -> str:
        text, self._held = self._held + text, ""
        if self._called and self._closing:
            stripped = text.lstrip()
            if stripped.startswith(self._closing):
                self.rest = stripped[len(self._closing) :]
                return ""
            if self._closing.startswith(stripped):
                self._held = text
                return ""
        found = self._head.match(text)
        if found is not None and found[1] in self._names:
            self._arguments = Arguments(found[1])
            return text[found.end() :]
        if self._may_become(text, is_whole=found is not None) and len(text) < _MAX_HEAD:
            self._held = text
            return ""
        if not self._called:
            parts.append(Text(self._gap))
        self.rest = text
        return ""

    def _may_become(self, text: str, is_whole: bool) -> bool:
        begun = text.lstrip()
        name = _NOT_NAME.split(begun, maxsplit=1)[0]
        if name == begun:
            return any(one.startswith(name) for one in self._names)
        return name in self._names and not is_whole


class WholeCalls(Reader):
    """Calls between two markers, read as a whole once the second has come; or JSON, if that is what follows."""

    def __init__(
        self,
        names: tuple[str, ...],
        opening: str,
        closing: str,
        parse: Callable[[str], list[Call] | None],
        holds_json_calls: bool = True,
    ) -> None:
        self._decided = not holds_json_calls
        self._names = names
        self._opening = opening
        self._closing = closing
        self._parse = parse
        self._json: JsonCalls | None = None
        self._pieces: list[str] = []
        self._length = 0
        self._tail = ""

    def _add(self, text: str) -> list[AnswerPart]:
        if not self._decided:
            text, self._tail = self._tail + text, ""
            first = text.lstrip()[:1]
            if not first:
                self._tail = text
                return []
            self._decided = True
            if first in ("{", "["):
                self._json = JsonCalls(self._names, self._opening, (self._closing,))
        if self._json is None:
            return self._hold(self._tail + text)
        parts = self._json.add(text)
        self.rest = self._json.rest
        return parts

    def _finish(self) -> list[AnswerPart]:
        return self._json.finish() if self._json else [Text(self._opening + "".join(self._pieces) + self._tail)]

    def _hold(self, text: str) -> list[AnswerPart]:
        at = text.find(self._closing)
        if at < 0:
            keep = max(len(text) - len(self._closing) + 1, 0)
            self._pieces.append(text[:keep])
            self._tail = text[keep:]
            self._length += keep
            return self._release("") if self._length > MAX_HELD else []
        self._pieces.append(text[:at])
        body = "".join(self._pieces)
        calls = self._parse(body)
        if calls is None or any(name not in self._names for name, _ in calls):
            return self._release(body + self._closing, text[at + len(self._closing) :])
        self.rest = text[at + len(self._closing) :]
        return [part for call in calls for part in whole(call)]

    def _release(self, body: str, rest: str = "") -> list[AnswerPart]:
        self.rest = rest
        return [Text(self._opening + (body or "".join(self._pieces) + self._tail))]
