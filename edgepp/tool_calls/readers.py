"""Readers of calls inside an answer, which get the text from the beginning of a call on."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

from edgepp.tool_calls.tool_use import AnswerPart, CallArguments, CallEnded, CallStarted

MAX_HELD = 1 << 18
"""Limit of the characters that are held back until they are known to be a call or not; longer ones are text."""

Call: TypeAlias = tuple[str, Mapping[str, Any]]
"""The name of a tool, and its arguments."""


class Reader(ABC):
    """A reader of text until the end of one or more calls. Text that turns out to be no call comes back as ``Text``."""

    rest: str | None = None
    """The text behind the calls, once they have ended; None while they go on."""

    def add(self, text: str) -> list[AnswerPart]:
        """The parts that are certain after more ``text``.

        Raises:
            EdgeppError: a call has begun, and its arguments break the form.
        """
        return self._add(text)

    def finish(self) -> list[AnswerPart]:
        """The parts that are certain now that the answer has ended; half the arguments of a call stay half."""
        parts = self._finish()
        self.rest = self.rest or ""
        return parts

    @abstractmethod
    def _add(self, text: str) -> list[AnswerPart]: ...

    @abstractmethod
    def _finish(self) -> list[AnswerPart]: ...


class CallsReader(Reader):
    """A reader of one or more calls up to one of several closings."""

    def __init__(self, names: tuple[str, ...], opening: str = "", closings: tuple[str, ...] = ()) -> None:
        """Prepare to read.

        Args:
            names: The tools that may be called.
            opening: The text in front, already read, which is text too if no call follows.
            closings: Markers one of which may stand behind the calls.
        """
        self._names = names
        self._opening = opening
        self._closings = closings


def whole(call: Call) -> list[AnswerPart]:
    """The parts of a call that is known as a whole."""
    name, arguments = call
    return [CallStarted(name), CallArguments(json.dumps(arguments, ensure_ascii=False)), CallEnded()]
