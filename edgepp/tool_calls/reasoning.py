"""Reasoning that a model writes in front of its answer, between two markers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgepp.tool_calls.tool_use import Reasoning, Text

_MAX_WHITE = 1024
"""Limit of held-back white space, which is dropped in front of a marker and behind it."""


@dataclass(frozen=True)
class ThinkingMarkers:
    """Two texts, each of one token or several, around the reasoning."""

    begin: str
    end: str


MARKERS = (
    ThinkingMarkers("<think>", "</think>"),
    ThinkingMarkers("<longcat_think>", "</longcat_think>"),
    ThinkingMarkers("<|think:start|>", "<|think:end|>"),
    ThinkingMarkers("<|channel>thought", "<channel|>"),
    ThinkingMarkers("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ThinkingMarkers("[THINK]", "[/THINK]"),
    ThinkingMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkingMarkers("<seed:think>", "</seed:think>"),
    ThinkingMarkers("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)

AnswerPart: TypeAlias = Text | Reasoning
"""A part of an answer, in the order in which the model wrote it."""


def markers_of(template: str, special_tokens: Collection[str] = ()) -> ThinkingMarkers | None:
    """The markers around the reasoning of a model with this template; None for a model that does not think."""
    for markers in MARKERS:
        if markers.begin in template or markers.end in template:
            return markers
        if markers.begin in special_tokens and markers.end in special_tokens:
            return markers
    return None


Beginning: TypeAlias = Literal["open", "possible", "closed"]
"""Whether an answer begins inside the reasoning, may begin with reasoning, or begins behind it."""


def beginning(markers: ThinkingMarkers | None, prompt_end: str) -> Beginning:
    """Beginning of an answer to a prompt that ends with ``prompt_end``, which may open or close the reasoning."""
    end = prompt_end.rstrip()
    if markers is None or end.endswith(markers.end):
        return "closed"
    return "open" if end.endswith(markers.begin) else "possible"


class ReasoningSplitter:
    """Splitter of an answer into the reasoning at its beginning, if any, and its text.

    White space around the markers is dropped. An answer that never closes its reasoning is reasoning as a whole.
    """

    def __init__(self, markers: ThinkingMarkers | None, begins: Beginning) -> None:
        self._markers = markers
        self._state = {"open": "reasoning", "possible": "begin", "closed": "text"}[begins]
        self._held = ""
        self._is_blank = True
        """Whether nothing but white space has come since the marker."""

    def add(self, text: str) -> list[AnswerPart]:
        """The pieces that are certain after more ``text``."""
        pieces: list[AnswerPart] = []
        text, self._held = self._held + text, ""
        if self._markers is not None and self._state == "begin":
            text = self._begin(text, self._markers)
        if self._markers is not None and self._state == "reasoning":
            text = self._reason(text, self._markers, pieces)
        if self._state == "behind":
            text = text.lstrip()
            self._state = "text" if text else self._state
        if text and self._state == "text":
            pieces.append(Text(text))
        return pieces

    def finish(self) -> list[AnswerPart]:
        """The piece held back, once the answer has ended."""
        held = self._held
        if self._state == "reasoning":
            held = held.rstrip()
            return [Reasoning(held)] if held else []
        return [Text(held)] if held else []

    def _begin(self, text: str, markers: ThinkingMarkers) -> str:
        stripped = text.lstrip()
        if stripped.startswith(markers.begin):
            self._state = "reasoning"
            return stripped[len(markers.begin) :]
        if markers.begin.startswith(stripped) and len(text) <= _MAX_WHITE:
            self._held = text
            return ""
        self._state = "text"
        return text

    def _reason(self, text: str, markers: ThinkingMarkers, pieces: list[AnswerPart]) -> str:
        if self._is_blank:
            text = text.lstrip()
            self._is_blank = not text
        at = text.find(markers.end)
        if at >= 0:
            self._state = "behind"
            if reasoning := text[:at].rstrip():
                pieces.append(Reasoning(reasoning))
            return text[at + len(markers.end) :]
        kept = len(text) - overlap(text, markers.end)
        kept = max(len(text[:kept].rstrip()), kept - _MAX_WHITE)
        self._held = text[kept:]
        if kept:
            pieces.append(Reasoning(text[:kept]))
        return ""


def overlap(text: str, marker: str) -> int:
    """Characters at the end of ``text`` that may become ``marker``."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
