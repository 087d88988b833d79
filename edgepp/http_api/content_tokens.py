"""The tokens of an answer that its text is made of, without those of its reasoning, its calls and their markers."""

from __future__ import annotations

from collections import deque

from edgepp.engine.text_stream import SpelledToken, TextPiece
from edgepp.tool_calls.tool_use import AnswerPart, Reasoning, Text


class ContentTokens:
    """Search for the tokens of each text that a parser has found in an answer."""

    def __init__(self) -> None:
        self._waiting: deque[SpelledToken] = deque()
        self._unread = ""
        """The end of the answer so far, from the place on up to which its parts are known."""
        self._read = 0
        """Characters of the answer in front of ``_unread``."""
        self._before: type[AnswerPart] | None = None
        """The kind of the part before the next one."""

    def add(self, piece: TextPiece) -> None:
        """Add what the parser gets next."""
        self._waiting += piece.tokens
        self._unread += piece.text

    def take(self, part: AnswerPart) -> list[SpelledToken]:
        """The tokens of ``part``, which is the next one that the parser has found; none unless it is text."""
        goes_on, self._before = type(part) is self._before, type(part)
        if not isinstance(part, Text | Reasoning):
            return []
        begin = self._read + self._place(part.text, goes_on=goes_on)
        end = begin + len(part.text)
        self._unread = self._unread[end - self._read :]
        self._read = end
        taken = []
        while self._waiting and self._waiting[0].begin < end:
            token = self._waiting.popleft()
            following = self._waiting[0].begin if self._waiting else self._read + len(self._unread)
            if token.begin >= begin or following > begin:
                taken.append(token)
        return taken if isinstance(part, Text) else []

    def _place(self, text: str, *, goes_on: bool) -> int:
        """The place of ``text`` in what is unread: at its beginning, or behind markers or calls, which are no text."""
        if goes_on and self._unread.startswith(text):
            return 0
        if self._unread.endswith(text):
            return len(self._unread) - len(text)
        return max(0, self._unread.find(text))
