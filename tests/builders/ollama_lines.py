"""Demands of strict clients of Ollama's API on each line and on each model in the list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CHAT = {"model": str, "created_at": str, "message": dict, "done": bool}
_GENERATE = {"model": str, "created_at": str, "response": str, "done": bool}
_LAST = {
    "done_reason": str,
    "total_duration": int,
    "load_duration": int,
    "prompt_eval_count": int,
    "prompt_eval_duration": int,
    "eval_count": int,
    "eval_duration": int,
}
_LISTED = {"name": str, "model": str, "modified_at": str, "size": int, "digest": str, "details": dict}
_DETAILS = {"format": str, "family": str, "families": list, "parameter_size": str, "quantization_level": str}


def strict_lines(body: bytes, *, chat: bool = True) -> list[dict[str, Any]]:
    """All lines of a stream; fails at a blank line, a missing field, or a field of another type."""
    assert body.endswith(b"\n"), "the last line has no end"
    assert body.decode().splitlines() == body.decode()[:-1].split("\n"), "a line holds an end of line of Python"
    lines = [json.loads(line) for line in body[:-1].split(b"\n")]
    for line in lines:
        _check(line, _CHAT if chat else _GENERATE)
        if chat:
            _check_message(line["message"])
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    _check(lines[-1], _LAST)
    return lines


def _check_message(message: dict[str, Any]) -> None:
    assert message["role"] == "assistant"
    assert isinstance(message["content"], str)
    for call in message.get("tool_calls", []):
        assert set(call) == {"function"}
        assert isinstance(call["function"]["name"], str)
        assert isinstance(call["function"]["arguments"], dict)


def check_listed(model: dict[str, Any]) -> None:
    """Fail unless a model of ``/api/tags`` has all that strict clients read."""
    _check(model, _LISTED)
    _check(model["details"], _DETAILS)
    assert model["size"] >= 0


def _check(value: dict[str, Any], fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        assert type(value.get(name)) is kind, f"{name} of {value} is no {kind.__name__}"
