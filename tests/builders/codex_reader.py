"""A reader of streams of the Responses API that behaves as Codex: it uses the same events and gives up at the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_SHOWN = {
    "response.output_text.delta": ("message", ""),
    "response.reasoning_text.delta": ("reasoning", "content_index"),
    "response.reasoning_summary_text.delta": ("reasoning", "summary_index"),
    "response.reasoning_summary_part.added": ("reasoning", "summary_index"),
}
"""Events that Codex shows while they come: the item that must be open, and the index that they must have."""
_LATER = re.compile(r"try again in\s*(\d+(?:\.\d+)?)\s*(s|ms|seconds?)", re.IGNORECASE)


class CodexGaveUpError(Exception):
    """The stream holds an event at which Codex ends the turn."""


@dataclass
class CodexTurn:
    """State of Codex after a stream."""

    items: list[dict[str, Any]] = field(default_factory=list)
    """Items that are done: Codex calls tools and shows messages from these alone."""
    text: str = ""
    """The text as it was shown while it came."""
    reasoning: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    completed: bool = False
    error: str = ""
    """The code of a failure, or ``incomplete``."""
    wait_s: float | None = None
    """Seconds until Codex tries again, where the failure names them."""
    num_events: int = 0
    """Events, each of which begins the time of Codex's patience again; comments do not."""


def server_sent_events(stream: bytes) -> Iterator[tuple[str, str]]:
    """Name and data of each event; comments are passed over."""
    for block in stream.decode().split("\n\n"):
        lines = [line.partition(":") for line in block.split("\n") if line and not line.startswith(":")]
        fields = {name: value.removeprefix(" ") for name, _, value in lines}
        if "data" in fields:
            yield fields.get("event", "message"), fields["data"]


def codex_reads(stream: bytes) -> CodexTurn:
    """The turn that Codex reads from ``stream``.

    Raises:
        CodexGaveUpError: as Codex would end the turn.
    """
    turn = CodexTurn()
    active: dict[str, Any] | None = None
    for _, data in server_sent_events(stream):
        turn.num_events += 1
        event = json.loads(data)
        kind = event.get("type", "")  # the name of the event is not used
        if kind == "response.created" and "response" not in event:
            raise CodexGaveUpError("created without response")
        if kind == "response.output_item.added":
            active = _item(event["item"])
        elif kind == "response.output_item.done":
            turn.items.append(_item(event["item"]))
            active = None
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            _end(turn, kind, event["response"])
        elif kind in _SHOWN:
            _show(turn, event, active)
    if not turn.completed and not turn.error:
        raise CodexGaveUpError("stream closed before response.completed")
    return turn


def _show(turn: CodexTurn, event: dict[str, Any], active: dict[str, Any] | None) -> None:
    kind, index = _SHOWN[event["type"]]
    if active is None or active["type"] != kind:
        raise CodexGaveUpError(f"{event['type']} without active item")
    if index and type(event[index]) is not int:
        raise CodexGaveUpError(f"{event['type']} without {index}")
    if kind == "message":
        turn.text += event["delta"]
    else:
        turn.reasoning += event.get("delta", "")


def _end(turn: CodexTurn, kind: str, response: dict[str, Any]) -> None:
    match kind:
        case "response.incomplete":
            turn.error = "incomplete"
        case "response.failed":
            _fail(turn, response["error"])
        case _:
            turn.usage = _usage(response)
            turn.completed = True


def _item(item: dict[str, Any]) -> dict[str, Any]:
    match item["type"]:
        case "message":
            wanted = {"role": str, "content": list}
        case "reasoning":
            wanted = {"summary": list}
        case "function_call":
            wanted = {"name": str, "arguments": str, "call_id": str}
        case "custom_tool_call":
            wanted = {"name": str, "input": str, "call_id": str}
        case other:
            raise CodexGaveUpError(f"unknown item {other}")
    for name, kind in wanted.items():
        if not isinstance(item.get(name), kind) or (name in ("name", "call_id") and not item[name]):
            raise CodexGaveUpError(f"a {item['type']} without {name}")
    return item


def _fail(turn: CodexTurn, error: dict[str, Any]) -> None:
    turn.error = error["code"]
    found = _LATER.search(error["message"])
    if error["code"] == "rate_limit_exceeded" and found:
        turn.wait_s = float(found[1]) / (1000 if found[2].lower() == "ms" else 1)


def _usage(response: dict[str, Any]) -> dict[str, Any]:
    if not response.get("id"):
        raise CodexGaveUpError("completed without id")
    usage: dict[str, Any] = response["usage"]
    counts = [usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]]
    counts += [usage["input_tokens_details"]["cached_tokens"], usage["output_tokens_details"]["reasoning_tokens"]]
    if any(type(count) is not int for count in counts):
        raise CodexGaveUpError("usage is no whole number")
    return usage
