"""Events of the Responses API from the events of an answer. Pure: no clock, no network.

    response.created, response.in_progress ► items, one open at a time ► response.completed, .incomplete or .failed

Codex counts the time between events and ignores comments, so ``Idle`` becomes another ``response.in_progress``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepp.http_api.failures import FailureKind, RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    GenerationEvent,
    Idle,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.named_events import named_event
from edgepp.http_api.openai_api.response_items import (
    CallItem,
    CustomCallItem,
    Event,
    ItemStatus,
    MessageItem,
    OutputItem,
    ReasoningItem,
    SummaryItem,
)
from edgepp.http_api.openai_api.response_tools import DeclaredTool

_CODES: dict[FailureKind, str] = {
    "context_length_exceeded": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "invalid_request": "invalid_prompt",
    "unsupported_content": "invalid_prompt",
    "request_too_large": "invalid_prompt",
}
"""Codes of ``response.failed``; others are ``server_error``. Codex compacts its history for the first."""
_LATER: tuple[FailureKind, ...] = ("rate_limited", "loading", "overloaded", "stopped")
"""Failures that a client may wait out."""


@dataclass(frozen=True)
class ResponseHead:
    """Fields that all events of one response share."""

    id: str
    """``resp_`` and letters and digits, which the ids of its items repeat."""
    created_s: int
    model: str
    echo: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that a response repeats."""
    tools: Mapping[str, DeclaredTool] = field(default_factory=dict)
    """The tools of the request, by the name that the model knows."""
    summarises: bool = False
    """Whether reasoning is told as a summary instead of as its text."""


class ResponseEncoder:
    """Encoder of one answer. Every method returns the events to send, in order."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._number = 0
        self._items: list[Event] = []
        """Items that have ended."""
        self._open: OutputItem | None = None
        self._finish = ""
        self.response = self._snapshot("in_progress")
        """The response as the newest event of its life told it."""
        self.over = False
        """Whether the last event was made."""

    def began(self) -> list[Event]:
        """The events before the first item."""
        return self._numbered([self._life("response.created"), self._life("response.in_progress")])

    def encode(self, event: GenerationEvent) -> list[Event]:
        """The events that tell of ``event``."""
        return self._numbered(self._encoded(event))

    def failed(self, error: RequestError) -> list[Event]:
        """The events of an answer that ended early; what there is of it stays in ``output``."""
        return self._numbered(self._failed(error))

    def _encoded(self, event: GenerationEvent) -> list[Event]:
        match event:
            case Idle():
                return [self._life("response.in_progress")]
            case TextDelta(_, "", ()):
                return []
            case TextDelta(_, text, logprobs):
                events, message = self._message()
                return [*events, *message.grow(text, logprobs)]
            case ReasoningDelta(_, text):
                events, reasoning = self._reasoning()
                return [*events, *reasoning.grow(text)]
            case ToolCallStarted(_, _, call_id, name):
                return self._begin(self._call(call_id, name))
            case ToolCallDelta(_, _, arguments):
                return self._open.grow(arguments) if isinstance(self._open, CallItem) else []
            case ToolCallEnded():
                return self._close("completed")
            case ChoiceEnded(_, finish_reason):
                self._finish = finish_reason
                return []
            case Ended(usage):
                return self._ended(usage)
            case _:
                return []

    def _ended(self, usage: Usage) -> list[Event]:
        if self._finish == "cancelled":
            return self._failed(RequestError("internal", "the answer was cancelled"))
        cut = self._finish == "length"
        events = self._close("incomplete" if cut else "completed")
        if not any(item["type"] != "reasoning" for item in self._items):
            begun, _ = self._message()  # clients read output[-1].content[0]
            events += begun + self._close("incomplete" if cut else "completed")
        details = {"reason": "max_output_tokens"} if cut else None
        status = "incomplete" if cut else "completed"
        self.response = self._snapshot(status, incomplete_details=details, usage=_usage(usage))
        self.over = True
        return [*events, self._life(f"response.{status}")]

    def _failed(self, error: RequestError) -> list[Event]:
        events = self._close("incomplete")
        self.response = self._snapshot("failed", error=_error(error))
        self.over = True
        return [*events, self._life("response.failed")]

    def _message(self) -> tuple[list[Event], MessageItem]:
        if isinstance(self._open, MessageItem):
            return [], self._open
        message = MessageItem(*self._place("msg"))
        return self._begin(message), message

    def _reasoning(self) -> tuple[list[Event], ReasoningItem]:
        if isinstance(self._open, ReasoningItem):
            return [], self._open
        reasoning = (SummaryItem if self._head.summarises else ReasoningItem)(*self._place("rs"))
        return self._begin(reasoning), reasoning

    def _call(self, call_id: str, name: str) -> CallItem:
        tool = self._head.tools.get(name, DeclaredTool(name))
        if tool.custom:
            return CustomCallItem(*self._place("ctc"), call_id, tool)
        return CallItem(*self._place("fc"), call_id, tool)

    def _place(self, prefix: str) -> tuple[str, int]:
        """The id and the index of the next item."""
        index = len(self._items) + (self._open is not None)
        return f"{prefix}_{self._head.id.removeprefix('resp_')}{index:02x}", index

    def _begin(self, item: OutputItem) -> list[Event]:
        events = self._close("completed")
        self._open = item
        return [*events, *item.began()]

    def _close(self, status: ItemStatus) -> list[Event]:
        if self._open is None:
            return []
        events = self._open.ended(status)
        self._items.append(events[-1]["item"])
        self._open = None
        return events

    def _life(self, kind: str) -> Event:
        return {"type": kind, "response": self.response}

    def _snapshot(self, status: str, **fields: Any) -> Event:
        body = {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created_s,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._head.model,
            "output": self._items[:],
            "usage": None,
        }
        return {**body, **self._head.echo, **fields}

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        return events


def frame(event: Event) -> bytes:
    """An event as server-sent event; its type stands in the data too, where Codex and the SDKs read it."""
    return named_event(event["type"], event)


def _error(error: RequestError) -> Event:
    code, message = _CODES.get(error.kind, "server_error"), _sentence(error)
    if error.kind in _LATER and error.retry_after_s is not None:
        # The one code and sentence for which Codex waits as long as it is told.
        return {"code": "rate_limit_exceeded", "message": f"{message} Please try again in {error.retry_after_s:.1f}s."}
    return {"code": code, "message": message}


def _sentence(error: RequestError) -> str:
    text = f"{error}: {error.hint}" if error.hint else str(error)
    return text if text.endswith(".") else f"{text}."


def _usage(usage: Usage) -> Event:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
