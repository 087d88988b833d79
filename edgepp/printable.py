"""Text from models, nodes and files, made safe to show on a terminal."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

# C0 and C1 controls except tab and newline, DEL, directional overrides and isolates, and lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_ENDS = re.compile(r"[\t\n]+")


def printable(text: str) -> str:
    """``text`` with each control character replaced by U+FFFD; tabs and newlines stay.

    Calls are independent, so the pieces of a stream can be cleaned one by one.
    """
    return _CONTROLS.sub("\ufffd", text)


def one_line(text: str, max_length: int | None = None) -> str:
    """``text`` as one printable line of at most ``max_length`` characters: for names, reasons and table cells."""
    line = printable(_LINE_ENDS.sub(" ", text)).strip()
    return line if max_length is None or len(line) <= max_length else line[: max_length - 1] + "…"


def json_line(value: object) -> str:
    """``value`` as one line of JSON that is safe to show: each control character in a string becomes an escape."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


class PrintableFormatter(logging.Formatter):
    """A log formatter for text from other machines: it has no control characters, and begins no line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one printable line; the lines of a traceback follow, indented."""
        return printable(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        """The line without the traceback."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """A traceback."""
        return "\n".join(f"  {line}" for line in super().formatException(ei).splitlines())
