"""The Responses API through the openai SDK, over a real socket: what the SDK accumulates, validates and raises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

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
from tests.builders.loopback_server import serving_app
from tests.builders.scripted_service import ScriptedService, Step, answer
from tests.builders.sdk_types import strictly
from tests.waiting import eventually

TOOL: Any = {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": True}
NAMESPACE: Any = {
    "type": "namespace",
    "name": "agents",
    "description": "n",
    "tools": [{"type": "function", "name": "close"}],
}
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


class City(BaseModel):
    """An answer's form."""

    name: str


@contextmanager
def client(*script: Step) -> Iterator[tuple[openai.OpenAI, ScriptedService]]:
    service = ScriptedService([script])
    with (
        serving_app(Routing(routes(service))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk,
    ):
        yield sdk, service


def comparable(response: Response) -> dict[str, Any]:
    """A response without what differs between two answers: ids, and the time."""
    told = response.to_dict()
    for item in told["output"]:  # type: ignore[attr-defined]
        item.pop("id")
        for part in item.get("content") or ():
            part.pop("parsed", None)
        item.pop("parsed_arguments", None)
    return {name: value for name, value in told.items() if name not in ("id", "created_at")}


@pytest.mark.parametrize("options", [{}, {"reasoning": {"summary": "auto"}}], ids=["text", "summary"])
def test_a_stream_accumulated_by_the_sdk_is_the_unstreamed_answer(options: Any) -> None:
    with client(*AGENT) as (sdk, _):
        asked = {"model": "smollm2-135m", "input": "list", "tools": [TOOL, NAMESPACE], **options}
        whole = sdk.responses.create(**asked)
        with sdk.responses.stream(**asked) as stream:
            streamed = stream.get_final_response()
        for event in sdk.responses.create(**asked, stream=True):
            strictly(ResponseStreamEvent, event.to_dict())
    assert comparable(whole) == comparable(streamed)
    strictly(Response, whole.to_dict())
    assert whole.output_text == "I look."
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens == 8


def test_the_sdk_parses_an_answer_held_to_a_schema() -> None:
    with client(*answer('{"name":', '"Oslo"}')) as (sdk, service):
        response = sdk.responses.parse(model="smollm2-135m", input="a city", text_format=City)
    assert response.output_parsed == City(name="Oslo")
    assert service.request.options.constraint is not None
    assert service.request.options.constraint.kind == "json_schema"


def test_a_wrong_request_is_the_sdks_exception() -> None:
    with client(*answer("x")) as (sdk, _), pytest.raises(openai.BadRequestError, match="stores no responses") as caught:
        sdk.responses.create(model="smollm2-135m", input="hi", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_the_sdk_hears_that_no_response_is_stored() -> None:
    with client() as (sdk, _), pytest.raises(openai.NotFoundError, match="stores no responses"):
        sdk.responses.retrieve("resp_1")


def test_the_sdk_counts_the_tokens_of_a_prompt() -> None:
    with client() as (sdk, _):
        assert sdk.responses.input_tokens.count(input="hi").input_tokens == len("user: hi\n")


def test_a_client_that_goes_away_ends_the_answer() -> None:
    with client(Started(9), TextDelta(0, "I"), asyncio.Event()) as (sdk, service):
        stream = sdk.responses.create(model="smollm2-135m", input="hi", stream=True)
        next(event for event in stream if event.type == "response.output_text.delta")
        stream.close()
        eventually("the answer is cancelled", lambda: service.played[0].cancelled)


@pytest.mark.parametrize("streamed", [False, True])
def test_langchain_calls_a_tool_over_responses(streamed: bool) -> None:
    langchain = pytest.importorskip("langchain_openai")
    with client(*AGENT) as (sdk, service):
        model = langchain.ChatOpenAI(
            model="smollm2-135m", base_url=str(sdk.base_url), api_key="any", max_retries=0, use_responses_api=True
        ).bind_tools([TOOL])
        if streamed:
            message, *rest = list(model.stream("list"))
            for chunk in rest:
                message += chunk
        else:
            message = model.invoke("list")
    assert message.text == "I look."
    (call,) = message.tool_calls
    assert (call["id"], call["name"], call["args"]) == ("call_a", "shell", {"cmd": "ls"})
    assert message.usage_metadata["input_token_details"]["cache_read"] == 8
    assert [tool.name for tool in service.request.tool_use.tools] == ["shell"]
