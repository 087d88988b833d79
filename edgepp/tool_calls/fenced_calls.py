"""Calls whose JSON stands in a fence of Markdown: DeepSeek's, each behind a name and tokens, and Command R's list."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepp.tool_calls.json_calls import Arguments, JsonCalls
from edgepp.tool_calls.readers import Reader
from edgepp.tool_calls.tool_use import AnswerPart, Text

_MAX_HEAD = 256
_FENCE = "```"
_JSON_FENCE = "```json"


@dataclass(frozen=True)
class Heads:
    """Texts around the arguments of calls."""

    head: re.Pattern[str]
    """All between the calls' marker, or the arguments before, and an opening brace; its first group is the name."""
    tail: re.Pattern[str]
    """All between the last arguments and the closing."""


class HeadedCalls(Reader):
    """Calls with one head and one object each, whose arguments are passed on as they come."""

    def __init__(self, names: tuple[str, ...], opening: str, closing: str, heads: Heads) -> None:
        """Prepare to read calls of ``names``; ``opening`` is read already, and ``closing`` stands behind the last."""
        self._names = names
        self._gap = opening
        self._closing = closing
        self._heads = heads
        self._held = ""
        self._called = False
        self._arguments: Arguments | None = None

    def _add(self, text: str) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        while text and self.rest is None:
            if self._arguments is None:
                text = self._read_head(self._held + text, parts)
                continue
            parts += self._arguments.add(text)
            text = self._arguments.rest or ""
            if self._arguments.rest is not None:
                self._arguments, self._called, self._gap = None, True, ""
        return parts

    def _finish(self) -> list[AnswerPart]:
        if self._arguments is not None:
            return self._arguments.finish()
        is_tail = self._called and self._heads.tail.fullmatch(self._held) is not None
        held = self._gap + self._held
        return [Text(held)] if held and not is_tail else []

    def _read_head(self, text: str, parts: list[AnswerPart]) -> str:
        """Read up to the next arguments, or to the end of the calls; returns the text from there on."""
        self._held = ""
        brace, end = text.find("{"), text.find(self._closing)
        if brace >= 0 and not 0 <= end < brace:
            found = self._heads.head.fullmatch(text[:brace])
            if found is not None and found[1] in self._names:
                self._arguments = Arguments(found[1])
                return text[brace:]
        elif end >= 0:
            if self._called and self._heads.tail.fullmatch(text[:end]):
                self.rest = text[end + len(self._closing) :]
                return ""
        elif len(text) < _MAX_HEAD:
            self._held = text
            return ""
        if self._gap:
            parts.append(Text(self._gap))
        self.rest = text
        return ""


class FencedCalls(Reader):
    """A list of calls as JSON, in a fence or without one."""

    def __init__(self, names: tuple[str, ...], opening: str) -> None:
        """Prepare to read calls of ``names``; ``opening`` is the text in front, which is read already."""
        self._names = names
        self._opening = opening
        self._held = ""
        self._calls: JsonCalls | None = None

    def _add(self, text: str) -> list[AnswerPart]:
        if self._calls is None:
            text, self._held = self._held + text, ""
            begun = text.lstrip()
            if _JSON_FENCE.startswith(begun) and len(text) < _MAX_HEAD:
                self._held = text
                return []
            fence = next((one for one in (_JSON_FENCE, _FENCE) if begun.startswith(one)), "")
            skipped = len(text) - len(begun) + len(fence)
            self._calls = JsonCalls(self._names, self._opening + text[:skipped], (_FENCE,) if fence else ())
            text = text[skipped:]
        parts = self._calls.add(text)
        self.rest = self._calls.rest
        return parts

    def _finish(self) -> list[AnswerPart]:
        return self._calls.finish() if self._calls else [Text(self._opening + self._held)]


class Dropped(Reader):
    """A marker that is neither text nor the beginning of calls."""

    def _add(self, text: str) -> list[AnswerPart]:
        self.rest = text
        return []

    def _finish(self) -> list[AnswerPart]:
        return []
