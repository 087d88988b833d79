"""The Responses API's events: golden streams, the SDK's own types without extra fields, and Codex's rules."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    FinishReason,
    GenerationEvent,
    Idle,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.openai_api.response_events import ResponseEncoder, ResponseHead, frame
from edgepp.http_api.openai_api.response_tools import DeclaredTool
from tests.builders.codex_reader import CodexTurn, codex_reads, server_sent_events
from tests.builders.sdk_types import strictly

ECHO = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}
TOOLS = {
    "shell": DeclaredTool("shell"),
    "agents.close": DeclaredTool("close", "agents"),
    "apply_patch": DeclaredTool("apply_patch", custom=True),
}
USAGE = Usage(prompt_tokens=20, cached_tokens=16, completion_tokens=5, reasoning_tokens=2)
TEXT = [TextDelta(0, "Hel"), TextDelta(0, "lo")]
CALL = [
    ToolCallStarted(0, 0, "call_a", "shell"),
    ToolCallDelta(0, 0, '{"cmd":'),
    ToolCallDelta(0, 0, '"ls"}'),
    ToolCallEnded(0, 0, '{"cmd":"ls"}'),
]


def ending(reason: FinishReason = "stop", usage: Usage = USAGE) -> list[GenerationEvent]:
    return [ChoiceEnded(0, reason, usage=usage), Ended(usage)]


def encoder(*, summarises: bool = False) -> ResponseEncoder:
    return ResponseEncoder(ResponseHead("resp_1", 1_764_000_000, "tiny", ECHO, TOOLS, summarises))


def encoded(*events: GenerationEvent, summarises: bool = False) -> list[dict[str, Any]]:
    one = encoder(summarises=summarises)
    return [*one.began(), *(told for event in events for told in one.encode(event))]


def codex(events: Iterable[dict[str, Any]]) -> CodexTurn:
    return codex_reads(b"".join(map(frame, events)))


def brief(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_the_events_of_a_text_in_their_order() -> None:
    events = encoded(Started(20), *TEXT, *ending())
    assert brief(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    places = {"item_id": "msg_100", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
    item = {"type": "message", "id": "msg_100", "status": "in_progress", "role": "assistant", "content": []}
    assert events[2] == {
        "type": "response.output_item.added",
        "sequence_number": 2,
        "output_index": 0,
        "item": item,
    }
    assert events[3] == {"type": "response.content_part.added", "sequence_number": 3, **places, "part": part}
    delta = {"type": "response.output_text.delta", **places, "logprobs": []}
    assert events[4:6] == [
        {**delta, "sequence_number": 4, "delta": "Hel"},
        {**delta, "sequence_number": 5, "delta": "lo"},
    ]
    done = {**item, "status": "completed", "content": [{**part, "text": "Hello"}]}
    assert events[8]["item"] == done
    assert events[9]["response"] == {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_764_000_000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "tiny",
        "output": [done],
        "usage": {
            "input_tokens": 20,
            "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 25,
        },
        **ECHO,
    }


def test_a_frame_names_its_type_twice() -> None:
    assert frame({"type": "response.x", "n": 1}) == b'event: response.x\ndata: {"type":"response.x","n":1}\n\n'


def test_a_call_repeats_its_name_and_whole_arguments_when_done() -> None:
    events = encoded(Started(20), *CALL, *ending("tool_calls"))
    assert brief(events)[2:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    call = {"type": "function_call", "id": "fc_100", "call_id": "call_a", "name": "shell"}
    assert events[2]["item"] == {**call, "status": "in_progress", "arguments": ""}
    assert events[6]["item"] == {**call, "status": "completed", "arguments": '{"cmd":"ls"}'}


def test_a_member_of_a_namespace_is_called_by_its_two_names() -> None:
    call = [ToolCallStarted(0, 0, "call_a", "agents.close"), ToolCallDelta(0, 0, "{}"), ToolCallEnded(0, 0, "{}")]
    turn = codex(encoded(Started(1), *call, *ending("tool_calls")))
    assert (turn.items[0]["namespace"], turn.items[0]["name"]) == ("agents", "close")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "*** Begin \\"Patch\\""}', '*** Begin "Patch"'),
        ('{"patch": "x"}', "x"),
        ("{}", "{}"),
        ('{"input": 1}', '{"input": 1}'),
        ("[1", "[1"),
    ],
)
def test_a_custom_call_has_its_input_as_plain_text(arguments: str, text: str) -> None:
    begun = ToolCallStarted(0, 0, "call_a", "apply_patch")
    pieces = [ToolCallDelta(0, 0, one) for one in arguments]
    events = encoded(Started(1), begun, *pieces, ToolCallEnded(0, 0, arguments), *ending("tool_calls"))
    assert codex(events).items == [
        {"type": "custom_tool_call", "id": "ctc_100", "call_id": "call_a", "name": "apply_patch", "input": text}
    ]
    assert "".join(one["delta"] for one in events if one["type"].endswith("input.delta")) == text


def test_items_are_open_one_at_a_time_and_their_places_rise() -> None:
    again = [ToolCallStarted(0, 1, "call_b", "shell"), ToolCallDelta(0, 1, "{}"), ToolCallEnded(0, 1, "{}")]
    events = encoded(Started(9), ReasoningDelta(0, "hm"), *TEXT, *CALL, *again, *ending("tool_calls"))
    opened = [one["output_index"] for one in events if one["type"] == "response.output_item.added"]
    closed = [one["output_index"] for one in events if one["type"] == "response.output_item.done"]
    assert opened == closed == [0, 1, 2, 3]
    response = events[-1]["response"]
    assert [one["type"] for one in response["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert len({one["id"] for one in response["output"]}) == 4


def test_reasoning_is_told_as_its_text_or_as_the_summary_that_was_asked_for() -> None:
    answer = [Started(9), ReasoningDelta(0, "let me "), ReasoningDelta(0, "see"), TextDelta(0, "4"), *ending()]
    plain, summary = encoded(*answer), encoded(*answer, summarises=True)
    assert codex(plain).reasoning == codex(summary).reasoning == "let me see"
    reasoning = plain[-1]["response"]["output"][0]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "let me see"}]
    assert reasoning["summary"] == []
    reasoning = summary[-1]["response"]["output"][0]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "let me see"}]


def test_waiting_repeats_in_progress_which_codex_counts_as_an_event() -> None:
    events = encoded(Started(9), Idle(), Idle(), *TEXT, Idle(), *ending())
    assert brief(events)[:4] == ["created", "in_progress", "in_progress", "in_progress"]
    assert brief(events).count("in_progress") == 4
    assert codex(events).text == "Hello"


@pytest.mark.parametrize("answer", [TEXT, [*TEXT, *CALL[:2]]])
def test_an_answer_cut_by_its_length_is_incomplete(answer: list[GenerationEvent]) -> None:
    events = encoded(Started(9), *answer, *ending("length"))
    response = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    assert response["status"] == response["output"][-1]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert codex(events).error == "incomplete"


@pytest.mark.parametrize("answer", [[], [TextDelta(0, "")], [ReasoningDelta(0, "only thought")]])
def test_an_answer_without_text_ends_with_an_empty_message(answer: list[GenerationEvent]) -> None:
    response = encoded(Started(9), *answer, *ending())[-1]["response"]
    assert response["output"][-1]["content"][0]["text"] == ""
    assert response["status"] == "completed"


def failing(error: RequestError, *events: GenerationEvent) -> list[dict[str, Any]]:
    one = encoder()
    told = [*one.began(), *(told for event in events for told in one.encode(event)), *one.failed(error)]
    assert one.over
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    return told


def test_a_failure_keeps_what_there_is_and_says_why() -> None:
    events = failing(RequestError("internal", "stage 1 on pi-2 is gone", "ask again"), Started(9), *TEXT)
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "stage 1 on pi-2 is gone: ask again."}
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert response["output"][0]["status"] == "incomplete"


def test_codex_compacts_when_the_prompt_is_too_long() -> None:
    assert codex(failing(RequestError("context_length_exceeded", "too long"))).error == "context_length_exceeded"


@pytest.mark.parametrize("kind", ["rate_limited", "loading", "overloaded"])
def test_codex_waits_as_long_as_it_is_told(kind: Any) -> None:
    turn = codex(failing(RequestError(kind, "busy.", retry_after_s=1.5)))
    assert (turn.error, turn.wait_s) == ("rate_limit_exceeded", 1.5)


def test_a_cancelled_answer_has_failed() -> None:
    events = encoded(Started(9), *TEXT, *ending("cancelled"))
    assert events[-1]["response"]["status"] == "failed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_log_probabilities_come_with_the_text() -> None:
    token = TokenLogprob("é", -0.5, (("é", -0.5), ("e", -1.0)))
    events = encoded(Started(1), TextDelta(0, "é", (token,)), *ending())
    top = [{"token": "é", "logprob": -0.5}, {"token": "e", "logprob": -1.0}]
    assert events[4]["logprobs"] == [{"token": "é", "logprob": -0.5, "top_logprobs": top}]
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["logprobs"][0]["bytes"] == [195, 169]


TEXTS = st.lists(st.text(st.sampled_from('aé\n"{:😀'), max_size=4), max_size=3)
TOOL_NAMES = st.sampled_from([*TOOLS, "undeclared"])


@st.composite
def answers(draw: st.DrawFn) -> list[GenerationEvent]:
    """Any answer that the generator may send."""
    events: list[GenerationEvent] = [Started(draw(st.integers(0, 9)))]
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["text", "reasoning", "call", "idle"]), max_size=6)):
        match kind:
            case "text":
                events += [TextDelta(0, one) for one in draw(TEXTS)]
            case "reasoning":
                events += [ReasoningDelta(0, one) for one in draw(TEXTS)]
            case "idle":
                events.append(Idle())
            case _:
                pieces = draw(TEXTS)
                events.append(ToolCallStarted(0, calls, f"call_{calls}", draw(TOOL_NAMES)))
                events += [ToolCallDelta(0, calls, one) for one in pieces]
                events.append(ToolCallEnded(0, calls, "".join(pieces)))
                calls += 1
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "cancelled"]))
    usage = Usage(*draw(st.tuples(*[st.integers(0, 99)] * 4)))
    return [*events, *ending(reason, usage)]


@settings(deadline=None)
@given(answers(), st.booleans())
def test_any_answer_is_a_stream_that_the_sdk_and_codex_read(answer: list[GenerationEvent], summarises: bool) -> None:
    events = encoded(*answer, summarises=summarises)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        strictly(ResponseStreamEvent, event)
    turn = codex(events)
    texts = "".join(one.text for one in answer if isinstance(one, TextDelta))
    assert turn.text == texts
    assert turn.items == events[-1]["response"]["output"]
    assert turn.num_events == len(events)
    assert strictly(Response, events[-1]["response"]).output_text == texts


def test_the_name_of_an_event_is_the_type_in_its_data() -> None:
    stream = b"".join(map(frame, encoded(Started(9), *TEXT, *CALL, *ending())))
    assert all(json.loads(data)["type"] == name for name, data in server_sent_events(stream))
