"""The events of an answer as Anthropic's stream and message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgepp.http_api.anthropic_api.errors import FORM
from edgepp.http_api.anthropic_api.message_events import (
    SIGNATURE,
    MessageAccumulator,
    MessageEvents,
    StreamEvent,
    frame,
)
from edgepp.http_api.failures import STATUS, FailureKind, RequestError
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

USAGE = Usage(prompt_tokens=20, cached_tokens=15, completion_tokens=6)


def streamed(*events: GenerationEvent, **options: Any) -> list[StreamEvent]:
    encoder = MessageEvents("m", "msg_1", **options)
    return [encoded for event in events for encoded in encoder.of(event)]


def message(*events: GenerationEvent, **options: Any) -> dict[str, Any]:
    accumulator = MessageAccumulator()
    for event in streamed(*events, **options):
        accumulator.add(event)
    return accumulator.message


def whole(*content: GenerationEvent, reason: FinishReason = "stop", stop: str | None = None) -> list[GenerationEvent]:
    return [Started(20), *content, ChoiceEnded(0, reason, stop), Ended(USAGE)]


def call(number: int, name: str, *arguments: str) -> list[GenerationEvent]:
    deltas = [ToolCallDelta(0, number, part) for part in arguments]
    return [ToolCallStarted(0, number, f"call_{number}", name), *deltas, ToolCallEnded(0, number, "".join(arguments))]


def names(events: list[StreamEvent]) -> list[str]:
    return [f"{event['type']} {event['index']}" if "index" in event else event["type"] for event in events]


def test_the_stream_of_a_text() -> None:
    assert streamed(*whole(TextDelta(0, "Hel"), TextDelta(0, ""), TextDelta(0, "lo"))) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 20,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": 0,
                },
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {
                "input_tokens": 20,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 6,
            },
        },
        {"type": "message_stop"},
    ]


def test_a_frame_names_its_event_twice() -> None:
    assert frame({"type": "ping"}) == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert frame({"type": "ping", "text": "ä\n"}) == 'event: ping\ndata: {"type":"ping","text":"ä\\n"}\n\n'.encode()


def test_one_block_is_open_at_a_time() -> None:
    events = streamed(
        *whole(
            ReasoningDelta(0, "Hm"),
            ReasoningDelta(0, "."),
            TextDelta(0, "I look."),
            *call(0, "read", '{"path":', '"a"}'),
            *call(1, "list"),
            TextDelta(0, "After"),
            reason="tool_calls",
        )
    )
    assert names(events) == [
        "message_start",
        "content_block_start 0",
        "content_block_delta 0",
        "content_block_delta 0",
        "content_block_delta 0",
        "content_block_stop 0",
        "content_block_start 1",
        "content_block_delta 1",
        "content_block_stop 1",
        "content_block_start 2",
        "content_block_delta 2",
        "content_block_delta 2",
        "content_block_stop 2",
        "content_block_start 3",
        "content_block_stop 3",
        "content_block_start 4",
        "content_block_delta 4",
        "content_block_stop 4",
        "message_delta",
        "message_stop",
    ]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "call_0", "name": "read", "input": {}},
        {"type": "tool_use", "id": "call_1", "name": "list", "input": {}},
        {"type": "text", "text": ""},
    ]


def test_the_message_of_an_answer_with_everything() -> None:
    answer = message(
        *whole(
            ReasoningDelta(0, "Hm"), TextDelta(0, "I "), TextDelta(0, "look."), *call(0, "read", '{"a":', "[1]}"),
            *call(1, "list"), TextDelta(0, "x"), reason="tool_calls",
        )
    )  # fmt: skip
    assert answer["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": SIGNATURE},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_0", "name": "read", "input": {"a": [1]}},
        {"type": "tool_use", "id": "call_1", "name": "list", "input": {}},
        {"type": "text", "text": "x"},
    ]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("tool_use", None)
    assert answer["usage"]["output_tokens"] == 6


def test_thinking_is_signed_before_its_block_ends() -> None:
    events = streamed(*whole(ReasoningDelta(0, "Hm"), reason="length"))
    assert [event.get("delta", {}).get("type") for event in events[1:5]] == [
        None,
        "thinking_delta",
        "signature_delta",
        None,
    ]
    assert events[3]["delta"]["signature"]


def test_an_answer_without_text_has_a_beginning_and_an_end() -> None:
    assert names(streamed(*whole())) == ["message_start", "message_delta", "message_stop"]
    assert message(*whole())["content"] == []


@pytest.mark.parametrize(
    ("reason", "stop", "told"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "###", ("stop_sequence", "###")),
        ("length", None, ("max_tokens", None)),
        ("length", "###", ("max_tokens", None)),
        ("tool_calls", None, ("tool_use", None)),
        ("cancelled", None, ("end_turn", None)),
    ],
)
def test_stop_reasons(reason: FinishReason, stop: str | None, told: tuple[str, str | None]) -> None:
    answer = message(*whole(TextDelta(0, "a"), reason=reason, stop=stop))
    assert (answer["stop_reason"], answer["stop_sequence"]) == told


def test_a_call_that_is_cut_off_is_an_ended_block_without_input() -> None:
    cut: list[GenerationEvent] = [ToolCallStarted(0, 0, "c", "read"), ToolCallDelta(0, 0, '{"pa')]
    events = streamed(*whole(*cut, reason="length"))
    assert names(events)[-3:] == ["content_block_stop 0", "message_delta", "message_stop"]
    answer = message(*whole(*cut, reason="length"))
    assert answer["content"] == [{"type": "tool_use", "id": "c", "name": "read", "input": {}}]
    assert answer["stop_reason"] == "max_tokens"


def test_waiting_is_a_ping() -> None:
    assert streamed(Queued("loading"), Idle()) == [{"type": "ping"}, {"type": "ping"}]
    open_block = streamed(Started(1), TextDelta(0, "a"), Idle(), TextDelta(0, "b"))
    assert names(open_block)[1:] == ["content_block_start 0", "content_block_delta 0", "ping", "content_block_delta 0"]


def test_cached_tokens_are_counted_apart_where_the_client_marks_the_cache() -> None:
    plain, marked = message(*whole())["usage"], message(*whole(), tells_cache=True)["usage"]
    assert (plain["input_tokens"], plain["cache_read_input_tokens"]) == (20, 0)
    assert (marked["input_tokens"], marked["cache_read_input_tokens"]) == (5, 15)
    assert plain["cache_creation_input_tokens"] == marked["cache_creation_input_tokens"] == 0


def test_reasoning_tokens_are_told() -> None:
    ended = Ended(Usage(20, 0, 6, reasoning_tokens=4))
    answer = message(Started(20), ChoiceEnded(0, "stop"), ended)
    assert answer["usage"]["output_tokens_details"] == {"thinking_tokens": 4}


def test_a_request_that_fills_the_cache_has_no_content() -> None:
    content = [TextDelta(0, "a"), ReasoningDelta(0, "b"), *call(0, "f", "{}")]
    for reason in ("length", "stop", "tool_calls"):
        events = streamed(*whole(*content, reason=reason), has_content=False)
        assert names(events) == ["message_start", "message_delta", "message_stop"]
        assert events[1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
        assert events[1]["usage"]["output_tokens"] == 0


@pytest.mark.parametrize("kind", STATUS)
def test_errors_have_the_form_of_the_api(kind: FailureKind) -> None:
    body = FORM.body(RequestError(kind, "it failed", "do better"), "req_1")
    assert body["type"] == "error"
    assert body["request_id"] == "req_1"
    assert body["error"]["message"] == "it failed; do better"
    assert json.loads(frame(dict(body)).split(b"data: ")[1]) == body


@pytest.mark.parametrize(
    ("kind", "status", "name"),
    [
        ("invalid_request", 400, "invalid_request_error"),
        ("unsupported_content", 400, "invalid_request_error"),
        ("authentication", 401, "authentication_error"),
        ("permission", 403, "permission_error"),
        ("not_found", 404, "not_found_error"),
        ("request_too_large", 413, "request_too_large"),
        ("rate_limited", 429, "rate_limit_error"),
        ("internal", 500, "api_error"),
        ("loading", 503, "overloaded_error"),
        ("overloaded", 529, "overloaded_error"),
    ],
)
def test_each_kind_of_error_has_its_status_and_name(kind: FailureKind, status: int, name: str) -> None:
    error = RequestError(kind, "it failed")
    assert (FORM.status(error), FORM.body(error, "")["error"]["type"]) == (status, name)
    assert FORM.body(error, "")["request_id"] is None


def test_a_prompt_that_is_too_long_is_told_as_clients_expect() -> None:
    error = RequestError("context_length_exceeded", "too long", "shorten", prompt_tokens=9000, context=8192)
    assert FORM.body(error, "")["error"]["message"] == "prompt is too long: 9000 tokens > 8192 maximum"
