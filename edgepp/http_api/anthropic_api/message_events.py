"""The events of an answer as the events of Anthropic's stream, and as one message. Pure.

    message_start, (content_block_start, content_block_delta*, content_block_stop)*, message_delta, message_stop

One block is open at a time. ``ping`` may stand between any two events.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    FinishReason,
    GenerationEvent,
    Idle,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.named_events import named_event

StreamEvent: TypeAlias = dict[str, Any]
"""The data of one event of the stream; ``type`` is its name."""
BlockKind: TypeAlias = Literal["text", "thinking", "tool_use"]

_CONTENT = (TextDelta, ReasoningDelta, ToolCallStarted, ToolCallDelta, ToolCallEnded)

SIGNATURE = "ZWRnZXBw"
"""The signature of all thinking blocks. Clients need a signature and send it back; nothing checks it."""

_STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "cancelled": "end_turn",
}


def new_id() -> str:
    """An id for a message."""
    return f"msg_{uuid.uuid4().hex[:24]}"


def frame(event: StreamEvent) -> bytes:
    """``event`` as a server-sent event. Clients dispatch on the name as well as on the type in the data."""
    return named_event(event["type"], event)


@dataclass
class MessageEvents:
    """The stream of one message: ``of`` translates the events of its answer one by one."""

    model: str
    id: str = field(default_factory=new_id)
    tells_cache: bool = False
    """Whether tokens from the cache are counted apart, as the API does for prompts with ``cache_control``."""
    has_content: bool = True
    """Whether the content is wanted; False for a request that only fills the prefix cache."""
    _open: BlockKind | None = None
    _index: int = -1
    _ended: ChoiceEnded = field(default_factory=lambda: ChoiceEnded(0, "stop"))

    def of(self, event: GenerationEvent) -> Iterator[StreamEvent]:
        """The events of the stream that ``event`` makes."""
        if not self.has_content and isinstance(event, _CONTENT):
            return
        match event:
            case Queued() | Idle():
                yield {"type": "ping"}
            case Started(prompt_tokens):
                yield self._message_start(prompt_tokens)
            case TextDelta(text=text) if text:
                yield from self._delta("text", {"type": "text_delta", "text": text})
            case ReasoningDelta(text=text) if text:
                yield from self._delta("thinking", {"type": "thinking_delta", "thinking": text})
            case ToolCallStarted(id=identity, name=name):
                yield from self._begin("tool_use", {"type": "tool_use", "id": identity, "name": name, "input": {}})
            case ToolCallDelta(arguments=arguments) if arguments:
                yield self._block_delta({"type": "input_json_delta", "partial_json": arguments})
            case ToolCallEnded():
                yield from self._end()
            case ChoiceEnded():
                yield from self._end()
                self._ended = event
            case Ended(usage):
                yield self._message_delta(usage)
                yield {"type": "message_stop"}

    def _delta(self, kind: BlockKind, delta: dict[str, Any]) -> Iterator[StreamEvent]:
        if self._open != kind:
            empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}[kind]
            yield from self._begin(kind, {"type": kind, **empty})
        yield self._block_delta(delta)

    def _begin(self, kind: BlockKind, block: dict[str, Any]) -> Iterator[StreamEvent]:
        yield from self._end()
        self._open = kind
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _block_delta(self, delta: dict[str, Any]) -> StreamEvent:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self) -> Iterator[StreamEvent]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._block_delta({"type": "signature_delta", "signature": SIGNATURE})
        self._open = None
        yield {"type": "content_block_stop", "index": self._index}

    def _message_start(self, prompt_tokens: int) -> StreamEvent:
        message: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(Usage(prompt_tokens)),
        }
        return {"type": "message_start", "message": message}

    def _message_delta(self, usage: Usage) -> StreamEvent:
        stop_sequence = self._ended.stop_string if self._ended.finish_reason == "stop" else None
        reason = "stop_sequence" if stop_sequence is not None else _STOP_REASONS[self._ended.finish_reason]
        if not self.has_content:
            reason, stop_sequence = "max_tokens", None  # whatever the one token was that had to be drawn
        delta = {"stop_reason": reason, "stop_sequence": stop_sequence}
        return {"type": "message_delta", "delta": delta, "usage": self._usage(usage)}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        cached = usage.cached_tokens if self.tells_cache else 0
        told: dict[str, Any] = {
            "input_tokens": usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion_tokens if self.has_content else 0,
        }
        if usage.reasoning_tokens:
            told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
        return told


@dataclass
class MessageAccumulator:
    """The message that the events of a stream make, as the API answers it without a stream."""

    message: dict[str, Any] = field(default_factory=dict)
    _arguments: str = ""

    def add(self, event: StreamEvent) -> None:
        """Take the next event of the stream."""
        content = self.message.get("content", [])
        match event:
            case {"type": "message_start", "message": message}:
                self.message = message
            case {"type": "content_block_start", "content_block": block}:
                content.append(dict(block))
                self._arguments = ""
            case {"type": "content_block_delta", "delta": delta}:
                self._add_delta(content[-1], delta)
            case {"type": "content_block_stop"} if self._arguments:
                content[-1]["input"] = _object(self._arguments)
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                self.message |= {**delta, "usage": usage}

    def _add_delta(self, block: dict[str, Any], delta: dict[str, Any]) -> None:
        for name, text in delta.items():
            if name == "partial_json":
                self._arguments += text
            elif name != "type":
                block[name] += text


def _object(arguments: str) -> dict[str, Any]:
    """The object of a call's arguments; empty if the answer ended in the middle of the arguments."""
    try:
        parsed = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
