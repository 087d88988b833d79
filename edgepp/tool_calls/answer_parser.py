"""The parser of one answer: reasoning first, then text and calls in any order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from edgepp.tool_calls.readers import Reader
from edgepp.tool_calls.reasoning import ReasoningSplitter, overlap
from edgepp.tool_calls.tool_use import AnswerPart, CallStarted, Reasoning, Text

_MAX_BLANK = 1024
"""Limit of held-back white space, which is dropped if a call follows."""
_MAX_INDENT = 64
"""Characters in front of a bracket that are checked to know whether the bracket begins a line."""


class CallParser:
    """Search for calls in the text of an answer, each of which a reader reads from its beginning on.

    White space around calls is dropped; all other text outside of calls is kept.
    """

    def __init__(
        self,
        markers: Mapping[str, Callable[[], Reader]],
        at_beginning: Callable[[], Reader] | None = None,
        at_lines: bool = False,
        is_held: bool = False,
    ) -> None:
        """Prepare for one answer.

        Args:
            markers: Texts that begin calls wherever they stand, and how to make the reader for what follows.
            at_beginning: How to make the reader for calls that begin with a bracket instead of a marker, at the
                beginning of the answer; None where there are none.
            at_lines: Whether such calls may also stand at the beginning of a line, if they begin with a brace.
            is_held: Whether a grammar holds the answer, so that what begins like a call is one; without its end, it is
                dropped. Of an answer that is not held it is text.
        """
        self._markers = markers
        self._at_beginning = at_beginning
        self._at_lines = at_lines
        self._is_held = is_held
        marks = [re.escape(one) for one in sorted(markers, key=len, reverse=True)]
        self._pattern = re.compile("|".join([*marks, *([r"[{\[]"] if at_beginning else [])]) or r"(?!)")
        self._held = ""
        self._reader: Reader | None = None
        self._blank: str | None = ""
        """The white space since the beginning or the last call; None once other text has come."""
        self._behind = "\n"
        """The last characters of the text so far."""
        self._called = False

    def add(self, text: str) -> list[AnswerPart]:
        """The parts that are certain after more ``text``.

        Raises:
            EdgeppError: a call has begun, and its arguments are not JSON.
        """
        parts: list[AnswerPart] = []
        while text:
            if self._reader is None:
                text = self._search(self._held + text, parts)
                continue
            self._take(self._reader.add(text), parts)
            text = self._reader.rest or ""
            if self._reader.rest is not None:
                self._reader = None
        return parts

    def finish(self) -> list[AnswerPart]:
        """The parts held back, once the answer has ended."""
        parts: list[AnswerPart] = []
        if self._reader is not None:
            found = self._reader.finish()
            self._take([part for part in found if not (self._is_held and isinstance(part, Text))], parts)
        if not self._is_held:
            self._text(self._held, parts)
        if self._blank and not self._called:
            _append(parts, self._blank)
        return parts

    def _search(self, text: str, parts: list[AnswerPart]) -> str:
        """Pass on text up to the next call; returns the text from the call on."""
        self._held = ""
        blank = -1 if self._blank is None else len(text) - len(text.lstrip())
        for found in self._pattern.finditer(text):
            if (make := self._markers.get(found[0])) is not None:
                self._text(text[: found.start()], parts)
                self._reader = make()
                return text[found.end() :]
            if self._at_beginning is not None and (found.start() <= blank or self._begins_line(text, found.start())):
                self._text(text[: found.start()], parts)
                self._reader = self._at_beginning()
                return text[found.start() :]
        kept = len(text) - max((overlap(text, one) for one in self._markers), default=0)
        self._held = text[kept:]
        self._text(text[:kept], parts)
        return ""

    def _begins_line(self, text: str, at: int) -> bool:
        """Whether a call without marker may begin with the bracket at ``at`` because it begins a line."""
        if not self._at_lines or text[at] != "{":
            return False
        before = text[max(0, at - _MAX_INDENT) : at]
        if at < _MAX_INDENT:
            before = self._behind + before
        _, newline, line = before.rpartition("\n")
        return bool(newline) and not line.strip()

    def _take(self, found: list[AnswerPart], parts: list[AnswerPart]) -> None:
        """Pass on the parts that a reader found."""
        for part in found:
            if isinstance(part, Text):
                self._text(part.text, parts)
                continue
            if isinstance(part, CallStarted):
                self._called, self._blank, self._behind = True, "", "\n"
            parts.append(part)

    def _text(self, text: str, parts: list[AnswerPart]) -> None:
        if not text:
            return
        self._behind = (self._behind + text)[-_MAX_INDENT:]
        if self._blank is not None:
            text = self._blank + text
            self._blank = text if text.isspace() and len(text) <= _MAX_BLANK else None
            if self._blank is not None:
                return
        _append(parts, text)


class SplitAnswerParser:
    """Reasoning, text and calls of one answer."""

    def __init__(self, reasoning: ReasoningSplitter, calls: CallParser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    def add(self, text: str) -> list[AnswerPart]:
        """The parts that are certain after more ``text``.

        Raises:
            EdgeppError: a call has begun, and its arguments are not JSON.
        """
        return [part for piece in self._reasoning.add(text) for part in self._parts(piece)]

    def finish(self) -> list[AnswerPart]:
        """The parts held back, once the answer has ended."""
        parts = [part for piece in self._reasoning.finish() for part in self._parts(piece)]
        return parts if self._calls is None else [*parts, *self._calls.finish()]

    def _parts(self, piece: Text | Reasoning) -> list[AnswerPart]:
        if self._calls is None or isinstance(piece, Reasoning):
            return [piece]
        return self._calls.add(piece.text)


def _append(parts: list[AnswerPart], text: str) -> None:
    """Append text, joined with the text in front."""
    last = parts[-1] if parts else None
    if isinstance(last, Text):
        parts[-1] = Text(last.text + text)
    else:
        parts.append(Text(text))
