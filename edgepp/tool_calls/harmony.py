"""Answers in channels, as gpt-oss writes them: ``<|channel|>analysis<|message|>…<|end|><|start|>assistant…``.

The channel ``analysis`` is reasoning, a message to ``functions.NAME`` is a call, and every other message is text.
"""

from __future__ import annotations

import re

from edgepp.tool_calls.json_calls import Arguments
from edgepp.tool_calls.reasoning import overlap
from edgepp.tool_calls.tool_use import AnswerPart, Reasoning, Text

MARKERS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_MARKER = re.compile("|".join(map(re.escape, MARKERS)))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=functions\.([\w.:/-]+)")
_MAX_HEAD = 512


def _may_be_head(text: str) -> bool:
    """Whether ``text`` may stand between a message's beginning and its content; a prompt may end behind the role."""
    begins = ("<|", "assistant", " to=functions.", "to=functions.")
    return any(text.startswith(one) or one.startswith(text) for one in begins)


class HarmonyParser:
    """Reasoning, text and calls of one answer."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Prepare for an answer that may call the tools ``names``."""
        self._names = names
        self._held = ""
        self._head: str | None = ""
        """The head of the next message; None inside a message."""
        self._is_reasoning = False
        self._call: Arguments | None = None

    def add(self, text: str) -> list[AnswerPart]:
        """The parts that are certain after more ``text``.

        Raises:
            EdgeppError: a call has begun, and its arguments are not JSON.
        """
        parts: list[AnswerPart] = []
        if self._call is not None and self._call.is_broken:
            self._call.finish()  # raises
        text, self._held = self._held + text, ""
        at = 0
        for found in _MARKER.finditer(text):
            self._take(text[at : found.start()], parts)
            if self._is_broken:
                return parts  # a marker must not hide that the answer cannot go on
            self._mark(found[0])
            at = found.end()
        kept = len(text) - max(overlap(text[at:], marker) for marker in MARKERS)
        self._take(text[at:kept], parts)
        self._held = text[kept:]
        return parts

    def finish(self) -> list[AnswerPart]:
        """The parts held back, once the answer has ended."""
        parts: list[AnswerPart] = []
        self._take(self._held, parts)
        if self._call is not None:
            parts += self._call.finish()
        elif self._head and "<|" not in self._head:
            parts.append(Text(self._head))
        return parts

    @property
    def _is_broken(self) -> bool:
        return self._call is not None and self._call.is_broken

    def _mark(self, marker: str) -> None:
        if marker == "<|message|>" and self._head is not None:
            self._begin(self._head)
        elif marker in ("<|channel|>", "<|constrain|>") and self._head is not None:
            self._head += marker
        elif marker != "<|message|>":
            self._head, self._call = marker if marker == "<|channel|>" else "", None

    def _begin(self, head: str) -> None:
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        self._head = None
        self._is_reasoning = channel is not None and channel[1] == "analysis" and recipient is None
        self._call = Arguments(recipient[1]) if recipient is not None and recipient[1] in self._names else None

    def _take(self, text: str, parts: list[AnswerPart]) -> None:
        if not text:
            return
        if self._head is not None:
            self._head += text
            if len(self._head) > _MAX_HEAD or not _may_be_head(self._head):
                self._show_head(parts)
        elif self._call is not None:
            parts += self._call.add(text) if self._call.rest is None else []
        else:
            parts.append(Reasoning(text) if self._is_reasoning else Text(text))

    def _show_head(self, parts: list[AnswerPart]) -> None:
        """Pass on held text that is not a head as text, since the model left the head out."""
        parts.append(Text(self._head or ""))
        self._head, self._is_reasoning, self._call = None, False, None
