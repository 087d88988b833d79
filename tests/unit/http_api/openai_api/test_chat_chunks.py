"""Streamed chat completions, byte by byte and by what clients break on (clients.md C1 to C5, C15, C20, C21)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    GenerationEvent,
    Idle,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.openai_api.answer_head import AnswerHead
from edgepp.http_api.openai_api.chat_completions import ChatChunks
from edgepp.http_api.openai_api.chat_request import ChatBody
from edgepp.http_api.openai_api.errors import in_band_error

HEAD = AnswerHead("chatcmpl-1", 1764000000, "smollm2-135m", "fp_5af571cbf074")
USAGE = Usage(prompt_tokens=7, cached_tokens=4, completion_tokens=3, prompt_s=0.5, decode_s=0.25)
TEXT: list[GenerationEvent] = [
    Started(7),
    Idle(),
    TextDelta(0, "Grüße"),
    TextDelta(0, ", you"),
    ChoiceEnded(0, "stop", usage=USAGE),
    Ended(USAGE),
]
CALL: list[GenerationEvent] = [
    Started(7),
    TextDelta(0, "Let me look."),
    ToolCallStarted(0, 0, "call_a", "get_weather"),
    ToolCallDelta(0, 0, '{"city": '),
    ToolCallDelta(0, 0, '"Bern"}'),
    ToolCallEnded(0, 0, '{"city": "Bern"}'),
    ToolCallStarted(0, 1, "call_b", "get_time"),
    ToolCallDelta(0, 1, "{}"),
    ToolCallEnded(0, 1, "{}"),
    ChoiceEnded(0, "tool_calls", usage=USAGE),
    Ended(USAGE),
]


def body(**fields: Any) -> ChatBody:
    return msgspec.convert({"messages": [{"role": "user", "content": "hi"}], "stream": True} | fields, ChatBody)


def stream(events: Sequence[GenerationEvent], **fields: Any) -> bytes:
    chunks = ChatChunks(HEAD, body(**fields))
    return b"".join(frame for event in events for frame in chunks.frames(event))


def chunks(events: Sequence[GenerationEvent], **fields: Any) -> list[dict[str, Any]]:
    """The chunks, after a check of the frame around each."""
    frames = stream(events, **fields).decode().split("\n\n")
    assert frames.pop() == ""
    frames = [frame for frame in frames if not frame.startswith(":")]
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def test_a_stream_is_these_bytes() -> None:
    begin = (
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764000000,'
        '"model":"smollm2-135m","system_fingerprint":"fp_5af571cbf074",'
    )
    timings = (
        '"timings":{"cache_n":4,"prompt_n":3,"prompt_ms":500.0,"prompt_per_token_ms":166.667,'
        '"prompt_per_second":6.0,"predicted_n":3,"predicted_ms":250.0,"predicted_per_token_ms":125.0,'
        '"predicted_per_second":8.0}'
    )
    expected = (
        ": keepalive\n\n"
        f'data: {begin}"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n'
        f'data: {begin}"choices":[{{"index":0,"delta":{{"content":"Grüße"}},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n'
        f'data: {begin}"choices":[{{"index":0,"delta":{{"content":", you"}},"logprobs":null,'
        '"finish_reason":null}],"usage":null}\n\n'
        f'data: {begin}"choices":[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}],"usage":null,'
        f"{timings}}}\n\n"
        f'data: {begin}"choices":[],"usage":{{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
        '"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,'
        f'"rejected_prediction_tokens":0}}}},{timings}}}\n\n'
        "data: [DONE]\n\n"
    )
    assert stream(TEXT, stream_options={"include_usage": True}).decode() == expected


def test_usage_comes_only_when_asked() -> None:
    for fields in ({}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
        told = chunks(TEXT, **fields)
        assert not any("usage" in chunk for chunk in told)
        assert all(chunk["choices"] for chunk in told)
    told = chunks(TEXT, stream_options={"include_usage": True})
    assert [chunk["usage"] is None for chunk in told] == [True] * 4 + [False]
    assert told[-1]["choices"] == []


@pytest.mark.parametrize("events", [TEXT, CALL])
def test_deltas_have_no_null_and_chunks_no_private_key(events: list[GenerationEvent]) -> None:
    for chunk in chunks(events):
        (choice,) = chunk["choices"]
        assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
        assert set(choice["delta"]) <= {"role", "content", "tool_calls"}
        assert None not in choice["delta"].values()
        assert set(chunk) - {"timings"} == {"id", "object", "created", "model", "system_fingerprint", "choices"}


@pytest.mark.parametrize(("events", "reason"), [(TEXT, "stop"), (CALL, "tool_calls")])
def test_the_finish_reason_is_null_until_the_last_chunk(events: list[GenerationEvent], reason: str) -> None:
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks(events)]
    assert reasons == [None] * (len(reasons) - 1) + [reason]
    assert chunks(events)[-1]["choices"][0]["delta"] == {}


def test_a_tool_call_begins_with_id_and_name_and_goes_on_with_arguments_alone() -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(CALL)]
    assert [delta["tool_calls"] for delta in deltas if "tool_calls" in delta] == [
        [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "get_weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"city": '}}],
        [{"index": 0, "function": {"arguments": '"Bern"}'}}],
        [{"index": 1, "id": "call_b", "type": "function", "function": {"name": "get_time", "arguments": ""}}],
        [{"index": 1, "function": {"arguments": "{}"}}],
    ]
    assert [delta for delta in deltas if "content" in delta] == [
        {"role": "assistant", "content": ""},
        {"content": "Let me look."},
    ]


def test_an_answer_that_is_a_call_alone_has_null_content() -> None:
    first = chunks([event for event in CALL if not isinstance(event, TextDelta)])[0]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}


def test_an_empty_answer_still_has_a_role_and_an_end() -> None:
    told = chunks([Started(7), ChoiceEnded(0, "length", usage=USAGE), Ended(USAGE)])
    assert [chunk["choices"][0]["delta"] for chunk in told] == [{"role": "assistant", "content": ""}, {}]
    assert told[-1]["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_the_cluster_cancelled_is_not_taken_for_a_whole_one() -> None:
    told = chunks([Started(7), ChoiceEnded(0, "cancelled", usage=USAGE), Ended(USAGE)])
    assert told[-1]["choices"][0]["finish_reason"] == "length"


def test_choices_begin_in_order_are_interleaved_and_end_once() -> None:
    told = chunks(
        [
            Started(7),
            TextDelta(1, "b"),
            TextDelta(0, "a"),
            TextDelta(1, "b"),
            ChoiceEnded(1, "stop"),
            TextDelta(0, "a"),
            ChoiceEnded(0, "length"),
            Ended(USAGE),
        ]
    )
    roles = [chunk["choices"][0]["index"] for chunk in told if "role" in chunk["choices"][0]["delta"]]
    assert roles == [0, 1]
    ends = {c["index"]: c["finish_reason"] for chunk in told for c in chunk["choices"] if c["finish_reason"]}
    assert ends == {1: "stop", 0: "length"}


def test_reasoning_has_a_field_of_its_own_and_a_second_when_asked() -> None:
    events: list[GenerationEvent] = [Started(7), ReasoningDelta(0, "hm"), TextDelta(0, "yes"), ChoiceEnded(0, "stop")]
    plain = chunks([*events, Ended(USAGE)])
    assert [chunk["choices"][0]["delta"] for chunk in plain][1:3] == [{"reasoning_content": "hm"}, {"content": "yes"}]
    assert plain[1]["choices"][0]["finish_reason"] is None
    both = chunks([*events, Ended(USAGE)], include_reasoning=True)
    assert both[1]["choices"][0]["delta"] == {"reasoning_content": "hm", "reasoning": "hm"}


def test_logprobs_have_bytes_and_come_only_when_asked() -> None:
    token = TokenLogprob("ü", -0.5, (("ü", -0.5), ("u", float("-inf"))))
    events: list[GenerationEvent] = [Started(7), TextDelta(0, "ü", (token,)), ChoiceEnded(0, "stop"), Ended(USAGE)]
    assert chunks(events)[1]["choices"][0]["logprobs"] is None
    (told,) = chunks(events, logprobs=True, top_logprobs=2)[1]["choices"]
    assert told["logprobs"] == {
        "content": [
            {
                "token": "ü",
                "logprob": -0.5,
                "bytes": [195, 188],
                "top_logprobs": [
                    {"token": "ü", "logprob": -0.5, "bytes": [195, 188]},
                    {"token": "u", "logprob": -9999.0, "bytes": [117]},
                ],
            }
        ],
        "refusal": None,
    }


def test_a_token_that_is_a_part_of_a_character_has_its_own_bytes() -> None:
    tokens = (
        TokenLogprob("\ufffd", -0.5, (("\ufffd", -0.5),), raw=b"\xf0\x9f", top_raw=(b"\xf0\x9f",)),
        TokenLogprob("\ufffd", -0.1, (("\ufffd", -0.1),), raw=b"\x98\x80", top_raw=(b"\x98\x80",)),
    )
    events: list[GenerationEvent] = [Started(7), TextDelta(0, "😀", tokens), ChoiceEnded(0, "stop"), Ended(USAGE)]
    told = chunks(events, logprobs=True, top_logprobs=1)[1]["choices"][0]["logprobs"]["content"]
    assert bytes(byte for token in told for byte in token["bytes"]).decode() == "😀"
    assert bytes(byte for token in told for byte in token["top_logprobs"][0]["bytes"]).decode() == "😀"


def test_a_wait_is_a_comment() -> None:
    assert stream([Queued("loading"), Started(7), Idle(), Idle()]) == b": keepalive\n\n" * 3


def test_a_stream_that_fails_says_so_in_band_and_ends() -> None:
    frames = in_band_error(RequestError("internal", "stage 1 on node two died", "ask again")).split(b"\n\n")
    assert json.loads(frames[0].removeprefix(b"data: ")) == {
        "error": {
            "message": "stage 1 on node two died (ask again)",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }
    assert frames[1:] == [b"data: [DONE]", b""]


@given(st.lists(st.text(max_size=5), max_size=8))
def test_any_text_comes_through_whole(texts: list[str]) -> None:
    told = chunks([Started(7), *[TextDelta(0, text) for text in texts], ChoiceEnded(0, "stop"), Ended(USAGE)])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told) == "".join(texts)
