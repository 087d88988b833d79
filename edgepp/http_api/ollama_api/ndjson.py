"""Events of an answer as Ollama's lines of JSON, and as its one object where nothing is streamed. Pure.

Clients parse every line: none is blank, and a keep-alive is a line with empty content. A tool call is one line, whole,
with its arguments as an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    FinishReason,
    GenerationEvent,
    Idle,
    Queued,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)

MEDIA_TYPE = "application/x-ndjson"
_DONE_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "cancelled": "length",
}
_LINE_BREAKS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
"""Characters that JSON may hold unescaped, and at which clients in Python end a line (``str.splitlines``)."""


def line(value: Mapping[str, Any]) -> bytes:
    """``value`` as one line of JSON."""
    encoded = msgspec.json.encode(value)
    for character, escaped in _LINE_BREAKS:
        encoded = encoded.replace(character, escaped)
    return encoded + b"\n"


def rfc3339(seconds: float) -> str:
    """Seconds since 1970 as ``2026-01-02T03:04:05.678901Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class LineDelta:
    """Addition of one line to the answer."""

    text: str = ""
    thinking: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


Shape = Callable[[LineDelta], dict[str, Any]]
"""From a delta to the fields of its line: those of a chat, or of a completion."""


def chat_shape(delta: LineDelta) -> dict[str, Any]:
    """The fields of ``/api/chat``."""
    message: dict[str, Any] = {"role": "assistant", "content": delta.text}
    if delta.thinking:
        message["thinking"] = delta.thinking
    if delta.calls:
        message["tool_calls"] = delta.calls
    return {"message": message, **_logprobs(delta)}


def generate_shape(delta: LineDelta) -> dict[str, Any]:
    """The fields of ``/api/generate``."""
    thinking = {"thinking": delta.thinking} if delta.thinking else {}
    return {"response": delta.text, **thinking, **_logprobs(delta)}


def _logprobs(delta: LineDelta) -> dict[str, Any]:
    if not delta.logprobs:
        return {}
    return {"logprobs": [_logprob(token) for token in delta.logprobs]}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [{"token": text, "logprob": logprob} for text, logprob in token.top]
    return {"token": token.text, "logprob": token.logprob, **({"top_logprobs": top} if top else {})}


def joined(deltas: Iterable[LineDelta]) -> LineDelta:
    """All ``deltas`` as one."""
    whole = list(deltas)
    return LineDelta(
        "".join(delta.text for delta in whole),
        "".join(delta.thinking for delta in whole),
        tuple(call for delta in whole for call in delta.calls),
        tuple(token for delta in whole for token in delta.logprobs),
    )


@dataclass
class Lines:
    """The lines of one answer: ``take`` each event, then ``last``."""

    model: str
    """The name that the client used."""
    shape: Shape
    now_s: Callable[[], float]
    """Seconds since 1970."""
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    token_ids: tuple[int, ...] = ()
    """The tokens of the answer, once it has ended."""
    _names: dict[int, str] = field(default_factory=dict)

    def take(self, event: GenerationEvent) -> LineDelta | None:
        """The addition of ``event`` to the answer; an empty delta for a keep-alive line, None for nothing.

        Raises:
            RequestError: the arguments of a tool call are no JSON object.
        """
        match event:
            case TextDelta():
                return LineDelta(text=event.text, logprobs=event.logprobs)
            case ReasoningDelta():
                return LineDelta(thinking=event.text)
            case ToolCallStarted():
                self._names[event.call] = event.name
            case ToolCallEnded():
                name = self._names[event.call]
                return LineDelta(calls=({"function": {"name": name, "arguments": _arguments(name, event.arguments)}},))
            case Idle() | Queued():
                return LineDelta()
            case ChoiceEnded():
                self.finish_reason, self.token_ids = event.finish_reason, event.token_ids
            case Ended():
                self.usage = event.usage
        return None

    def more(self, delta: LineDelta) -> bytes:
        """The line that adds ``delta`` to the answer, with its line end."""
        return line({**self._head(), **self.shape(delta), "done": False})

    def last(self, delta: LineDelta = LineDelta(), extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The last line, with reason, counts and nanoseconds; with the whole answer where nothing was streamed."""
        usage = self.usage
        return {
            **self._head(),
            **self.shape(delta),
            "done": True,
            "done_reason": _DONE_REASONS[self.finish_reason],
            **(extra or {}),
            "total_duration": _nanoseconds(usage.queue_s + usage.prompt_s + usage.decode_s),
            "load_duration": _nanoseconds(usage.queue_s),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(usage.prompt_s),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(usage.decode_s),
        }

    def idle(self, reason: str) -> dict[str, Any]:
        """The answer to a request without a prompt, whose ``reason`` is ``load`` or ``unload``."""
        return {**self._head(), **self.shape(LineDelta()), "done": True, "done_reason": reason}

    def _head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": rfc3339(self.now_s())}


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)


def _arguments(name: str, text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise RequestError("internal", f"the model called {name} with arguments that are no JSON object") from error
