"""The routes of the Responses API, over a scripted service."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import httpx
import pytest

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    Idle,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.openai_api.responses import routes
from edgepp.http_api.routing import Routing
from tests.builders.codex_reader import codex_reads
from tests.builders.scripted_service import ScriptedService, Step, answer

T = TypeVar("T")
TOOL = {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": True}
USAGE = Usage(prompt_tokens=9, cached_tokens=8, completion_tokens=4, reasoning_tokens=1)
AGENT: list[Step] = [
    Started(9),
    Idle(),
    ReasoningDelta(0, "hm"),
    TextDelta(0, "I lo"),
    TextDelta(0, "ok."),
    ToolCallStarted(0, 0, "call_a", "shell"),
    ToolCallDelta(0, 0, '{"cmd":'),
    ToolCallDelta(0, 0, '"ls"}'),
    ToolCallEnded(0, 0, '{"cmd":"ls"}'),
    ChoiceEnded(0, "tool_calls", usage=USAGE),
    Ended(USAGE),
]


def post(service: ScriptedService, path: str = "/v1/responses", **body: Any) -> httpx.Response:
    return call(service, "POST", path, body)


def call(service: ScriptedService, method: str, path: str, body: Any = None) -> httpx.Response:
    async def respond() -> httpx.Response:
        transport = httpx.ASGITransport(Routing(routes(service)))
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(respond())


def test_a_stream_is_what_codex_reads() -> None:
    told = post(ScriptedService([AGENT]), input="list", stream=True, reasoning={"summary": "auto"})
    assert told.headers["content-type"].startswith("text/event-stream")
    assert told.headers["x-accel-buffering"] == "no"
    turn = codex_reads(told.content)
    assert (turn.completed, turn.text, turn.reasoning) == (True, "I look.", "hm")
    assert turn.items[-1]["arguments"] == '{"cmd":"ls"}'


def test_a_request_says_all_that_the_generator_needs() -> None:
    service = ScriptedService([answer("x")])
    post(
        service,
        model="smollm2-135m",
        input="hi",
        instructions="be kind",
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=5,
        temperature=0,
        top_p=0.5,
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        reasoning={"effort": "none"},
    )
    asked = service.request
    assert asked.prompt.messages[0] == {"role": "system", "content": "be kind"}  # type: ignore[union-attr]
    assert asked.prompt.variables["enable_thinking"] is False  # type: ignore[union-attr]
    assert (asked.tool_use.choice, asked.tool_use.parallel) == ("required", False)
    assert asked.tool_use.tools[0].strict
    options = asked.options
    assert (options.max_tokens, options.sampling.temperature, options.sampling.top_p) == (5, 0, 0.5)
    assert options.sampling.logprobs == 3


@pytest.mark.parametrize("most", [None, 0, -1, 32_000])
def test_an_answer_may_fill_the_context(most: int | None) -> None:
    service = ScriptedService([answer("x")])
    assert post(service, input="hi", max_output_tokens=most).status_code == 200
    assert service.request.options.max_tokens == service.model.context
    post(service, input="hi", max_output_tokens=10**30)
    assert service.request.options.max_tokens == service.model.context


def test_the_same_routes_are_there_without_v1() -> None:
    assert post(ScriptedService([answer("x")]), "/responses", input="hi").json()["status"] == "completed"


def test_input_tokens_are_those_of_the_prompt() -> None:
    service = ScriptedService([answer("x")])
    bare = post(service, "/v1/responses/input_tokens", input="hi").json()
    assert bare == {"object": "response.input_tokens", "input_tokens": len("user: hi\n")}
    tooled = post(service, "/v1/responses/input_tokens", input="hi", tools=[TOOL]).json()
    assert tooled["input_tokens"] > bare["input_tokens"]
    assert not service.played


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_an_error_of_openais_form(stream: bool) -> None:
    told = post(ScriptedService([answer("x")]), input="hi", previous_response_id="resp_1", stream=stream)
    assert told.status_code == 400
    assert told.json()["error"]["param"] == "previous_response_id"


def test_an_unknown_model_is_not_found() -> None:
    told = post(ScriptedService([answer("x")]), model="gpt-9", input="hi")
    assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")


LATE = {
    "context_length_exceeded": RequestError("context_length_exceeded", "too long", prompt_tokens=9, context=8),
    "rate_limit_exceeded": RequestError("rate_limited", "busy", retry_after_s=2),
}


@pytest.mark.parametrize("code", LATE)
def test_a_stream_tells_of_refusals_that_codex_can_mend(code: str) -> None:
    told = post(ScriptedService([[LATE[code]]]), input="hi", stream=True)
    assert (told.status_code, codex_reads(told.content).error) == (200, code)
    told = post(ScriptedService([[LATE[code]]]), input="hi")
    assert told.status_code in (400, 429)
    assert told.json()["error"]["code"] == code


def test_other_refusals_have_a_status_before_the_stream_begins() -> None:
    loading = RequestError("loading", "the cluster loads", retry_after_s=3)
    told = post(ScriptedService([[loading]]), input="hi", stream=True)
    assert (told.status_code, told.headers["retry-after"]) == (503, "3")


@pytest.mark.parametrize("end", [[], [RequestError("internal", "stage 1 is gone")]])
def test_a_stream_that_breaks_ends_with_a_failure(end: list[Step]) -> None:
    told = post(ScriptedService([[Started(9), TextDelta(0, "I"), *end]]), input="hi", stream=True)
    turn = codex_reads(told.content)
    assert (turn.error, turn.text) == ("server_error", "I")
    assert post(ScriptedService([[Started(9), TextDelta(0, "I"), *end]]), input="hi").status_code == 500


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items"),
    ],
)
def test_a_stored_response_is_not_found(method: str, path: str) -> None:
    told = call(ScriptedService([]), method, path)
    assert told.status_code == 404
    assert "stores no responses" in told.json()["error"]["message"]


def test_compaction_is_not_offered() -> None:
    assert post(ScriptedService([]), "/v1/responses/compact", input="hi").status_code == 501
