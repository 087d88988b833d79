"""Calls as Gemma writes them: ``call:get_weather{city:<escape>Paris<escape>,days:3}``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgepp.tool_calls.readers import Call
from edgepp.tool_calls.tagged_calls import converted

_CALL = re.compile(r"\s*call:([\w.:/-]+)\{")
_KEY = re.compile(r"\s*([^:{}\[\],<]+):")
_SCALAR = re.compile(r"[^,{}\[\]<]+")
_WHITE = re.compile(r"\s*")
_MAX_DEPTH = 50


class _NotGemmaError(ValueError):
    """The text does not have the form of calls."""


@dataclass
class _Values:
    text: str
    quote: str
    at: int = 0

    def calls(self) -> list[Call]:
        calls: list[Call] = []
        while found := _CALL.match(self.text, self.at):
            self.at = found.end()
            calls.append((found[1], self._object(0)))
        self._skip()
        if self.at < len(self.text):
            raise _NotGemmaError
        return calls

    def _object(self, depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        while not self._take("}"):
            if value and not self._take(","):
                raise _NotGemmaError
            key = self._key()
            value[key] = self._value(depth + 1)
        return value

    def _key(self) -> str:
        if self._take(self.quote):
            key = self._string()
            if not self._take(":"):
                raise _NotGemmaError
            return key
        found = _KEY.match(self.text, self.at)
        if found is None:
            raise _NotGemmaError
        self.at = found.end()
        return found[1].strip()

    def _list(self, depth: int) -> list[Any]:
        value: list[Any] = []
        while not self._take("]"):
            if value and not self._take(","):
                raise _NotGemmaError
            value.append(self._value(depth + 1))
        return value

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise _NotGemmaError
        if self._take(self.quote):
            return self._string()
        if self._take("{"):
            return self._object(depth)
        if self._take("["):
            return self._list(depth)
        found = _SCALAR.match(self.text, self.at)
        if found is None:
            raise _NotGemmaError
        self.at = found.end()
        return converted(found[0].strip(), None, "")

    def _string(self) -> str:
        end = self.text.find(self.quote, self.at)
        if end < 0:
            raise _NotGemmaError
        text, self.at = self.text[self.at : end], end + len(self.quote)
        return text

    def _take(self, token: str) -> bool:
        self._skip()
        taken = self.text.startswith(token, self.at)
        self.at += len(token) if taken else 0
        return taken

    def _skip(self) -> None:
        found = _WHITE.match(self.text, self.at)
        self.at = found.end() if found else self.at


def parse(text: str, quote: str) -> list[Call] | None:
    """The calls in ``text``, whose strings stand between two ``quote``; None if the text is not whole calls."""
    try:
        return _Values(text, quote).calls() or None
    except _NotGemmaError:
        return None
