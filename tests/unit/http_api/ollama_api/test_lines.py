from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import ollama
import pytest
from pydantic import BaseModel

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
from edgepp.http_api.ollama_api.answer import streamed
from edgepp.http_api.ollama_api.ndjson import LineDelta, Lines, Shape, chat_shape, generate_shape, joined, line
from tests.builders.ollama_lines import strict_lines

USAGE = Usage(prompt_tokens=7, completion_tokens=3, queue_s=0.001, prompt_s=0.5, decode_s=0.25)


def ended(reason: FinishReason = "stop") -> list[GenerationEvent]:
    return [ChoiceEnded(0, reason, usage=USAGE), Ended(USAGE)]


def called(call: int, name: str, arguments: str) -> list[GenerationEvent]:
    return [
        ToolCallStarted(0, call, f"call_{call}", name),
        ToolCallDelta(0, call, arguments),
        ToolCallEnded(0, call, arguments),
    ]


async def nothing(_: LineDelta) -> dict[str, Any]:
    return {}


def stream(
    events: Sequence[GenerationEvent], shape: Shape = chat_shape, clock_s: Callable[[], float] = lambda: 0.0
) -> bytes:
    async def read() -> bytes:
        async def played() -> AsyncIterator[GenerationEvent]:
            for event in events:
                yield event

        lines = Lines("m", shape, lambda: 1_700_000_000.25)
        return b"".join([frame async for frame in streamed(played(), lines, nothing, clock_s)])

    return asyncio.run(read())


def test_the_lines_of_a_chat_byte_by_byte() -> None:
    head = '{"model":"m","created_at":"2023-11-14T22:13:20.250000Z",'
    assert stream([Started(7), TextDelta(0, "Hé"), TextDelta(0, "y"), *ended()]).decode() == (
        head + '"message":{"role":"assistant","content":"Hé"},"done":false}\n'
        + head + '"message":{"role":"assistant","content":"y"},"done":false}\n'
        + head + '"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",'
        '"total_duration":751000000,"load_duration":1000000,"prompt_eval_count":7,"prompt_eval_duration":500000000,'
        '"eval_count":3,"eval_duration":250000000}\n'
    )  # fmt: skip


def test_the_lines_of_a_completion_byte_by_byte() -> None:
    head = '{"model":"m","created_at":"2023-11-14T22:13:20.250000Z",'
    assert stream([TextDelta(0, "Hey"), *ended("length")], generate_shape).decode() == (
        head + '"response":"Hey","done":false}\n'
        + head + '"response":"","done":true,"done_reason":"length",'
        '"total_duration":751000000,"load_duration":1000000,"prompt_eval_count":7,"prompt_eval_duration":500000000,'
        '"eval_count":3,"eval_duration":250000000}\n'
    )  # fmt: skip


@pytest.mark.parametrize("shape", [chat_shape, generate_shape])
def test_a_long_prefill_is_kept_alive_by_whole_lines(shape: Shape) -> None:
    events = [Started(7), *[Idle()] * 12, TextDelta(0, "a"), Idle(), TextDelta(0, "b"), *ended()]
    lines = strict_lines(stream(events, shape), chat=shape is chat_shape)
    texts = [found["message"]["content"] if shape is chat_shape else found["response"] for found in lines]
    assert texts == [""] * 12 + ["a", "", "b", ""]


def test_a_long_tool_call_is_kept_alive_by_whole_lines() -> None:
    now = iter(range(100))
    start, delta, end = called(0, "write", '{"text":"long"}')
    lines = strict_lines(stream([start, *[delta] * 20, end, *ended("tool_calls")], clock_s=lambda: float(next(now))))
    assert len(lines) > 3
    assert [found["message"].get("tool_calls") for found in lines if "tool_calls" in found["message"]] == [
        [{"function": {"name": "write", "arguments": {"text": "long"}}}]
    ]


def test_arguments_are_objects_and_calls_stop_an_answer() -> None:
    events = [TextDelta(0, "Let me look."), *called(0, "a", '{\n"x": 1}'), *called(1, "b", "{}"), *ended("tool_calls")]
    lines = strict_lines(stream(events))
    assert [call for found in lines for call in found["message"].get("tool_calls", [])] == [
        {"function": {"name": "a", "arguments": {"x": 1}}},
        {"function": {"name": "b", "arguments": {}}},
    ]
    assert lines[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("arguments", ['{"x":', "[1]", ""])
def test_arguments_that_are_no_object_end_the_answer_with_an_error(arguments: str) -> None:
    with pytest.raises(RequestError, match="the model called a with arguments that are no JSON object"):
        stream([*called(0, "a", arguments), *ended()])


def test_a_call_that_was_cut_off_is_left_out() -> None:
    lines = strict_lines(stream([*called(0, "a", '{"x":')[:2], *ended("length")]))
    assert len(lines) == 1
    assert lines[0]["done_reason"] == "length"


def test_reasoning_has_a_field_of_its_own() -> None:
    lines = strict_lines(stream([ReasoningDelta(0, "Hm"), TextDelta(0, "Yes"), *ended()]))
    assert [found["message"] for found in lines] == [
        {"role": "assistant", "content": "", "thinking": "Hm"},
        {"role": "assistant", "content": "Yes"},
        {"role": "assistant", "content": ""},
    ]


def test_logprobs() -> None:
    token = TokenLogprob("a", -0.5, (("a", -0.5), ("b", -1.5)), 5)
    first, second, _ = strict_lines(
        stream([TextDelta(0, "a", (token,)), TextDelta(0, "b", (TokenLogprob("b", -2.0),)), *ended()])
    )
    assert first["logprobs"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "top_logprobs": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}],
        }
    ]
    assert second["logprobs"] == [{"token": "b", "logprob": -2.0}]


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\x85", "\n", "\x0b\x0c\x1c\x1d\x1e\r", "é\u0085☃"])
def test_no_text_ends_a_line_for_clients_in_python(text: str) -> None:
    encoded = line({"text": text})
    assert len(encoded.decode().splitlines()) == 1
    assert json.loads(encoded) == {"text": text}


@pytest.mark.parametrize(
    ("shape", "kind"), [(chat_shape, ollama.ChatResponse), (generate_shape, ollama.GenerateResponse)]
)
def test_every_line_has_fields_that_the_sdk_knows_alone(shape: Shape, kind: type[BaseModel]) -> None:
    calls = called(0, "a", '{"x":1}') if shape is chat_shape else []
    events = [ReasoningDelta(0, "Hm"), TextDelta(0, "a", (TokenLogprob("a", -0.5, (("b", -1.0),)),)), *calls, *ended()]
    for encoded in stream(events, shape).splitlines():
        assert_known(kind.model_validate_json(encoded), json.loads(encoded))


def assert_known(found: Any, sent: Any) -> None:
    """Fail unless the SDK's model holds all that was sent."""
    if isinstance(found, BaseModel):
        assert set(sent) <= set(type(found).model_fields)
        for name, value in sent.items():
            assert_known(getattr(found, name), value)
    elif isinstance(sent, list):
        for one, value in zip(found, sent, strict=True):
            assert_known(one, value)
    else:
        assert found == sent


def test_pieces_joined_are_the_whole_answer() -> None:
    token = TokenLogprob("a", -1.0)
    whole = joined(
        [LineDelta("a", logprobs=(token,)), LineDelta(), LineDelta("b", "hm"), LineDelta(calls=({"function": {}},))]
    )
    assert whole == LineDelta("ab", "hm", ({"function": {}},), (token,))
