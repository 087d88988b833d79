"""OpenAI's API through the openai SDK, over a real socket: what the SDK accumulates, validates and raises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from edgepp.http_api.failures import FailureKind, RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    GenerationEvent,
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
from edgepp.http_api.openai_api.routes import routes
from edgepp.http_api.routing import Routing
from tests.builders.loopback_server import serving_app
from tests.builders.scripted_service import SERVED, ScriptedService, Step, answer
from tests.builders.sdk_types import strictly
from tests.waiting import PATIENCE_S, eventually

USAGE = Usage(prompt_tokens=7, cached_tokens=4, completion_tokens=9, prompt_s=0.5, decode_s=0.25)
USER: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALLS: list[GenerationEvent] = [
    Started(7),
    TextDelta(0, "Let me look."),
    ToolCallStarted(0, 0, "call_a", "get_weather"),
    ToolCallDelta(0, 0, '{"city": '),
    ToolCallDelta(0, 0, '"Bern"}'),
    ToolCallEnded(0, 0, '{"city": "Bern"}'),
    ToolCallStarted(0, 1, "call_b", "get_weather"),
    ToolCallDelta(0, 1, '{"city": "Basel"}'),
    ToolCallEnded(0, 1, '{"city": "Basel"}'),
    ChoiceEnded(0, "tool_calls", usage=USAGE),
    Ended(USAGE),
]
TWO: list[GenerationEvent] = [
    Started(7),
    TextDelta(1, "be", (TokenLogprob("be", -0.1, (("be", -0.1), ("ee", -3.0))),)),
    TextDelta(0, "ah", (TokenLogprob("ah", -0.2, (("ah", -0.2), ("oh", -2.0))),)),
    TextDelta(1, "!", (TokenLogprob("!", -0.3, (("!", -0.3), ("?", -1.0))),)),
    ChoiceEnded(1, "stop", usage=USAGE),
    ChoiceEnded(0, "stop", usage=USAGE),
    Ended(USAGE),
]
THOUGHT: list[GenerationEvent] = [
    Started(7),
    ReasoningDelta(0, "h"),
    ReasoningDelta(0, "m"),
    TextDelta(0, "yes"),
    ChoiceEnded(0, "stop", usage=USAGE),
    Ended(USAGE),
]


@contextmanager
def client(*script: Step, **options: Any) -> Iterator[tuple[openai.OpenAI, ScriptedService]]:
    service = ScriptedService([script], model=options.pop("served", SERVED), state=options.pop("state", {}))
    with (
        serving_app(Routing(routes(service))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, **options) as sdk,
    ):
        yield sdk, service


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (answer("Hello", ", you"), {}),
        (answer(), {}),
        (CALLS, {"tools": TOOLS}),
        ([event for event in CALLS if not isinstance(event, TextDelta)], {"tools": TOOLS}),
        (TWO, {"n": 2, "logprobs": True, "top_logprobs": 2}),
        (THOUGHT, {}),
    ],
    ids=["text", "nothing", "text and calls", "calls", "two choices with logprobs", "reasoning"],
)
def test_a_stream_accumulated_by_the_sdk_is_the_unstreamed_answer(script: list[Step], options: dict[str, Any]) -> None:
    with client(*script) as (sdk, _):
        whole = sdk.chat.completions.create(model="smollm2-135m", messages=USER, **options)
        asked = {"stream_options": {"include_usage": True}} | options
        with sdk.chat.completions.stream(model="smollm2-135m", messages=USER, **asked) as stream:
            chunks = [event.chunk for event in stream if event.type == "chunk"]
            final = stream.get_final_completion()
    assert final.usage == whole.usage
    for streamed, unstreamed in zip(final.choices, whole.choices, strict=True):
        assert streamed.finish_reason == unstreamed.finish_reason
        assert streamed.logprobs == unstreamed.logprobs or not options.get("logprobs")
        message, other = streamed.message, unstreamed.message
        assert (message.content, message.role) == (other.content, other.role)
        assert getattr(message, "reasoning_content", None) == getattr(other, "reasoning_content", None)
        assert [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or []] == [
            (call.id, call.function.name, call.function.arguments)
            for call in other.tool_calls or []
            if call.type == "function"
        ]
    strictly(ChatCompletion, whole, allowed={"timings", "choices.message.reasoning_content"})
    for chunk in chunks:
        strictly(ChatCompletionChunk, chunk, allowed={"timings", "choices.delta.reasoning_content"})


def test_the_asynchronous_sdk_reads_the_same_stream() -> None:
    async def text(url: str) -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk:
            stream = await sdk.chat.completions.create(model="smollm2-135m", messages=USER, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    service = ScriptedService([answer("Hello", ", you")])
    with serving_app(Routing(routes(service))) as url:
        assert asyncio.run(text(url)) == "Hello, you"


def test_completions_stream_to_the_unstreamed_text() -> None:
    with client(*TWO) as (sdk, service):
        options: Any = {"model": "smollm2-135m", "prompt": "Once", "n": 2, "logprobs": 2, "max_tokens": 4}
        whole = sdk.completions.create(**options)
        stream = list(sdk.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        assert service.request.prompt == "Once"
    for number, choice in enumerate(whole.choices):
        mine = [one for chunk in stream for one in chunk.choices if one.index == number]
        assert "".join(one.text for one in mine) == choice.text
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        assert choice.logprobs is not None
        parts = [one.logprobs for one in mine if one.logprobs is not None]
        assert [token for part in parts for token in part.tokens or []] == choice.logprobs.tokens
        assert [offset for part in parts for offset in part.text_offset or []] == choice.logprobs.text_offset
    assert stream[-1].usage == whole.usage
    strictly(Completion, whole, allowed={"timings"})
    for one in stream:
        for choice in one.choices:
            choice.finish_reason = choice.finish_reason or "stop"  # the SDK has one type for chunks and answers
        strictly(Completion, one, allowed={"timings"})


def test_models_are_listed_and_found_by_each_name() -> None:
    with client() as (sdk, _):
        (listed,) = sdk.models.list().data
        assert listed.id == "smollm2-135m"
        for name in SERVED.names:
            assert sdk.models.retrieve(name).id == name
        keys = set(listed.model_extra or {})
        strictly(Model, listed, allowed=keys)
        assert listed.model_extra is not None
        contexts = ("max_model_len", "context_length", "max_context_length", "loaded_context_length", "context_window")
        assert {listed.model_extra[key] for key in contexts} == {SERVED.context}


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("invalid_request", openai.BadRequestError),
        ("context_length_exceeded", openai.BadRequestError),
        ("unsupported_content", openai.BadRequestError),
        ("authentication", openai.AuthenticationError),
        ("permission", openai.PermissionDeniedError),
        ("not_found", openai.NotFoundError),
        ("request_too_large", openai.APIStatusError),
        ("rate_limited", openai.RateLimitError),
        ("internal", openai.InternalServerError),
        ("loading", openai.InternalServerError),
        ("overloaded", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_sdks_exceptions(kind: FailureKind, raised: type[openai.APIStatusError], stream: bool) -> None:
    refusal = RequestError(kind, "this and that", parameter="x", retry_after_s=2.0)
    with client(Queued("planning"), refusal) as (sdk, _), pytest.raises(raised, match="this and that") as caught:
        sdk.chat.completions.create(model="smollm2-135m", messages=USER, stream=stream)
    assert caught.value.status_code == RequestError(kind, "").status
    assert caught.value.param == "x"
    assert caught.value.response.headers["retry-after"] == "2"


def test_an_unknown_model_is_not_found() -> None:
    with client() as (sdk, _):
        with pytest.raises(openai.NotFoundError, match="there is smollm2-135m") as caught:
            sdk.chat.completions.create(model="gpt-5", messages=USER)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError):
            sdk.models.retrieve("a/b")


def test_embeddings_are_refused_in_json() -> None:
    with client() as (sdk, _), pytest.raises(openai.APIStatusError, match="embeddings") as caught:
        sdk.embeddings.create(model="smollm2-135m", input="x")
    assert caught.value.status_code == 501


def test_an_error_in_mid_stream_reaches_the_reader_after_the_text() -> None:
    read = []
    with client(Started(7), TextDelta(0, "Hel"), RequestError("internal", "stage 1 died")) as (sdk, service):
        stream = sdk.chat.completions.create(model="smollm2-135m", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match="stage 1 died"):
            read += [chunk.choices[0].delta.content for chunk in stream]
        assert service.played[0].closed


def test_a_reader_that_goes_away_cancels_the_answer() -> None:
    never = asyncio.Event()
    with client(Started(7), TextDelta(0, "Hel"), never) as (sdk, service):
        with sdk.chat.completions.create(model="smollm2-135m", messages=USER, stream=True) as stream:
            for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        eventually("the answer is cancelled", lambda: service.played[0].cancelled)


def test_a_client_that_gives_up_waiting_cancels_the_answer() -> None:
    for stream in (False, True):
        with client(asyncio.Event(), timeout=httpx.Timeout(PATIENCE_S, read=1.0)) as (sdk, service):
            with pytest.raises(openai.APITimeoutError):
                sdk.chat.completions.create(model="smollm2-135m", messages=USER, stream=stream)
            eventually(
                "the answer is cancelled", lambda service=service: service.played and service.played[0].cancelled
            )


def test_streams_are_not_cached_or_buffered_on_their_way() -> None:
    with client(*answer("x")) as (sdk, _):
        response = sdk.chat.completions.with_raw_response.create(model="smollm2-135m", messages=USER, stream=True)
        response.parse().close()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers


def test_a_loading_model_tells_how_far_it_is() -> None:
    loading = {"state": "loading", "node": "two", "progress": 0.75, "eta_seconds": 93.5}
    state = {"state": "loading", "loading": loading}
    refusal = RequestError("loading", "the cluster loads", retry_after_s=5)
    with client(refusal, served=replace(SERVED, state="loading"), state=state) as (sdk, _):
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(model="smollm2-135m", messages=USER)
        (listed,) = sdk.models.list().data
    body = caught.value.response.json()
    assert body["error"]["type"] == "model_loading"
    assert body["loading"] == {"model": "smollm2-135m", **loading}
    assert caught.value.response.headers["retry-after"] == "5"
    assert listed.model_extra is not None
    assert listed.model_extra["status"] == {"value": "loading"}
