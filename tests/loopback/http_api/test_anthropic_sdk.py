"""Anthropic's SDK against the routes of the API, over a scripted model."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse

from edgepp.http_api.anthropic_api.messages import routes
from edgepp.http_api.failures import FailureKind, RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
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
from edgepp.http_api.openai_api.routes import routes as openai_routes
from tests.builders.loopback_server import serving
from tests.builders.scripted_service import ScriptedService, Step, answer
from tests.builders.sdk_types import strictly
from tests.waiting import eventually

USAGE = Usage(prompt_tokens=20, cached_tokens=15, completion_tokens=6, reasoning_tokens=2)
ARGUMENTS = '{"path": "a.txt", "lines": [1, 2]}'
EVERYTHING: list[Step] = [
    Queued("loading"),
    Started(20),
    Idle(),
    ReasoningDelta(0, "Let me "),
    ReasoningDelta(0, "see."),
    TextDelta(0, "I "),
    Idle(),
    TextDelta(0, "look."),
    ToolCallStarted(0, 0, "call_1", "read"),
    *(ToolCallDelta(0, 0, part) for part in (ARGUMENTS[:9], ARGUMENTS[9:])),
    ToolCallEnded(0, 0, ARGUMENTS),
    ToolCallStarted(0, 1, "call_2", "list"),
    ToolCallDelta(0, 1, "{}"),
    ToolCallEnded(0, 1, "{}"),
    ChoiceEnded(0, "tool_calls", usage=USAGE),
    Ended(USAGE),
]
ASK: list[Any] = [{"role": "user", "content": "hi"}]
READ: Any = {"name": "read", "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}


@contextmanager
def client_of(*scripts: list[Step]) -> Iterator[tuple[anthropic.Anthropic, ScriptedService]]:
    service = ScriptedService(scripts)
    with serving(routes(service)) as url, anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        yield client, service


def create(client: anthropic.Anthropic, **fields: Any) -> Message:
    fields = {"model": "smollm2-135m", "max_tokens": 16_000, "messages": ASK, **fields}
    message: Message = client.messages.create(**fields)
    return message


@pytest.mark.parametrize(
    "script",
    [
        EVERYTHING,
        answer("Hel", "lo"),
        answer(),
        [Started(3), TextDelta(0, "a"), ChoiceEnded(0, "stop", "###"), Ended(Usage(3, 0, 2))],
        [Started(3), ReasoningDelta(0, "a"), ChoiceEnded(0, "length"), Ended(Usage(3, 0, 2, 2))],
    ],
    ids=["everything", "text", "nothing", "stop sequence", "cut off"],
)
def test_the_accumulated_stream_is_the_message(script: list[Step]) -> None:
    with client_of(script) as (client, _):
        whole = create(client)
        with client.messages.stream(model="smollm2-135m", max_tokens=9, messages=ASK) as stream:
            accumulated = stream.get_final_message()
    ours, theirs = whole.model_dump(exclude={"id"}), accumulated.model_dump(exclude={"id"})
    assert ours == theirs
    assert whole.id.startswith("msg_")


def test_the_async_client_accumulates_the_same() -> None:
    async def accumulate(url: str) -> tuple[Message, Message]:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
            whole = await client.messages.create(model="smollm2-135m", max_tokens=9, messages=ASK)
            async with client.messages.stream(model="smollm2-135m", max_tokens=9, messages=ASK) as stream:
                return whole, await stream.get_final_message()

    with serving(routes(ScriptedService([EVERYTHING]))) as url:
        whole, accumulated = asyncio.run(accumulate(url))
    assert whole.model_dump(exclude={"id"}) == accumulated.model_dump(exclude={"id"})


def test_a_message_has_all_parts_of_the_answer() -> None:
    with client_of(EVERYTHING) as (client, service):
        message = create(client, tools=[READ])
    thinking, text, read, listing = message.content
    assert (thinking.type, text.type, read.type, listing.type) == ("thinking", "text", "tool_use", "tool_use")
    assert read.type == "tool_use"
    assert read.input == json.loads(ARGUMENTS)
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("tool_use", 20, 6)
    assert service.request.tool_use.tools[0].name == "read"


def test_every_event_is_one_of_the_sdks_types() -> None:
    with client_of(EVERYTHING) as (client, _):
        lines = list(_frames(client))
        message = httpx.post(f"{client.base_url}/v1/messages?beta=true", json={"messages": ASK}).json()
        count = httpx.post(f"{client.base_url}/v1/messages/count_tokens", json={"messages": ASK}).json()
    strictly(Message, message)
    strictly(MessageTokensCount, count)
    for name, data in lines:
        assert name == data["type"]
        if name != "ping":  # the SDK leaves these out before it looks at their type
            strictly(RawMessageStreamEvent, data)
    assert [name for name, _ in lines if name == "ping"] == ["ping", "ping"]


def _frames(client: anthropic.Anthropic) -> Iterator[tuple[str, dict[str, Any]]]:
    headers = {"anthropic-version": "2099-01-01", "anthropic-beta": "a-1,b-2"}
    asked = {"model": "smollm2-135m", "messages": ASK, "stream": True}
    response = httpx.post(f"{client.base_url}/v1/messages?beta=true", json=asked, headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    for part in response.text.strip().split("\n\n"):
        name, data = part.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("invalid_request", anthropic.BadRequestError),
        ("context_length_exceeded", anthropic.BadRequestError),
        ("authentication", anthropic.AuthenticationError),
        ("permission", anthropic.PermissionDeniedError),
        ("not_found", anthropic.NotFoundError),
        ("request_too_large", anthropic.ContentTooLargeError),
        ("rate_limited", anthropic.RateLimitError),
        ("overloaded", anthropic.OverloadedError),
        ("loading", anthropic.ServiceUnavailableError),
        ("internal", anthropic.InternalServerError),
    ],
)
def test_a_refusal_is_an_exception_of_the_sdk(kind: FailureKind, raised: type[anthropic.APIStatusError]) -> None:
    error = RequestError(kind, "it failed", retry_after_s=2, prompt_tokens=9000, context=2048)
    for fields in ({}, {"stream": True}):
        with client_of([Queued("loading"), error]) as (client, _), pytest.raises(raised) as caught:
            create(client, **fields)
        assert type(caught.value) is raised
        assert caught.value.response.headers["retry-after"] == "2"
        if kind != "request_too_large":  # the SDK has no type for its body
            strictly(ErrorResponse, caught.value.body)
    if kind == "context_length_exceeded":
        assert caught.value.api_message == "prompt is too long: 9000 tokens > 2048 maximum"


def test_the_sdk_tries_again_after_an_overload() -> None:
    busy = RequestError("overloaded", "busy", retry_after_s=0.001)
    with client_of([busy], answer("hello")) as (client, service):
        assert create(client.with_options(max_retries=2)).stop_reason == "end_turn"
    assert len(service.played) == 2


def test_an_error_in_mid_stream_is_an_event() -> None:
    broken: list[Step] = [Started(3), TextDelta(0, "a"), RequestError("overloaded", "a stage was lost", "try again")]
    with client_of(broken) as (client, _):
        frames = list(_frames(client))
        assert frames[-1][0] == "error"
        assert frames[-1][1]["error"] == {"type": "overloaded_error", "message": "a stage was lost; try again"}
        with (
            pytest.raises(anthropic.APIStatusError, match="a stage was lost"),
            client.messages.stream(model="smollm2-135m", max_tokens=9, messages=ASK) as stream,
        ):
            stream.until_done()
        with pytest.raises(anthropic.APIStatusError, match="a stage was lost") as caught:
            create(client)
    assert caught.value.status_code == 529


def test_a_wrong_field_is_named() -> None:
    with client_of(answer("x")) as (client, service), pytest.raises(anthropic.BadRequestError) as caught:
        create(client, messages=[{"role": "user", "content": [{"text": "no type"}]}])
    assert "messages[0].content[0]" in str(caught.value.api_message)
    assert not service.played


def test_the_count_is_that_of_the_prompt() -> None:
    asked: dict[str, Any] = {
        "model": "smollm2-135m",
        "messages": ASK,
        "system": [{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "Be brief."}],
        "tools": [READ],
    }
    with client_of(answer("x")) as (client, service):
        counted = client.messages.count_tokens(**asked).input_tokens
        client.messages.create(max_tokens=5, **asked)
        prompt = asyncio.run(service.encode(service.request.prompt, service.request.tool_use))
    assert counted == len(prompt)


def test_another_model_is_not_found() -> None:
    with client_of(answer("x")) as (client, _):
        with pytest.raises(anthropic.NotFoundError, match="smollm2-135m"):
            create(client, model="gpt-5")
        with pytest.raises(anthropic.NotFoundError, match="smollm2-135m"):
            client.messages.count_tokens(model="gpt-5", messages=ASK)


def test_models_are_listed_in_the_form_of_the_api() -> None:
    service = ScriptedService([answer("x")])
    with serving(openai_routes(service)) as url, anthropic.Anthropic(base_url=url, api_key="k") as client:
        (listed,) = client.models.list()
        named = client.models.retrieve("smollm2-135m")
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("gpt-5")
        theirs = httpx.get(f"{url}/v1/models").json()
    assert strictly(ModelInfo, listed.to_dict(mode="python")) == named
    assert (listed.id, listed.max_input_tokens) == ("smollm2-135m", service.model.context)
    assert theirs["object"] == "list"


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
@pytest.mark.parametrize("before", [[], [Started(3), TextDelta(0, "a")]], ids=["waiting", "answering"])
def test_an_answer_is_cancelled_when_its_client_goes(fields: dict[str, Any], before: list[Step]) -> None:
    service = ScriptedService([[*before, asyncio.Event()]])
    body = json.dumps({"messages": ASK, **fields})
    with serving(routes(service)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/messages HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            eventually("the answer is read", lambda: service.played and service.played[0].sent == len(before))
        eventually("the answer is cancelled", lambda: service.played[0].cancelled)
