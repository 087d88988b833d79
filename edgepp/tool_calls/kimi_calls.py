"""Calls as Kimi K2 writes them: an id with the name and a number, and JSON, between markers."""

from __future__ import annotations

import json
import re

from edgepp.tool_calls.readers import Call

_CALL = re.compile(
    r"\s*<\|tool_call_begin\|>\s*(?:functions\.)?([^\s<>]+?)(?::[0-9]+)?\s*<\|tool_call_argument_begin\|>\s*"
)
_END = "<|tool_call_end|>"


def parse(text: str) -> list[Call] | None:
    """The calls in ``text``; None if the text is not whole calls and nothing else."""
    calls: list[Call] = []
    at = 0
    while found := _CALL.match(text, at):
        end = text.find(_END, found.end())
        if end < 0:
            return None
        try:
            arguments = json.loads(text[found.end() : end], strict=False)
        except (ValueError, RecursionError):
            return None
        if not isinstance(arguments, dict):
            return None
        calls.append((found[1], arguments))
        at = end + len(_END)
    return calls if calls and not text[at:].strip() else None
