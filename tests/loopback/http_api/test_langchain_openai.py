"""LangChain over OpenAI's API: answers, streams, tools and structured output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgepp.engine.request import Constraint
from edgepp.http_api.generation import (
    ChoiceEnded,
    Ended,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallEnded,
    ToolCallStarted,
    Usage,
)
from edgepp.http_api.openai_api.routes import routes
from edgepp.http_api.routing import Routing
from tests.builders.loopback_server import serving_app
from tests.builders.scripted_service import ScriptedService, Step, answer

langchain_openai = pytest.importorskip("langchain_openai")
USAGE = Usage(prompt_tokens=7, cached_tokens=4, completion_tokens=9)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


@contextmanager
def chat(*script: Step) -> Iterator[tuple[object, ScriptedService]]:
    service = ScriptedService([script])
    with serving_app(Routing(routes(service))) as url:
        model = langchain_openai.ChatOpenAI(model="smollm2-135m", base_url=f"{url}/v1", api_key="any", max_retries=0)
        yield model, service


def test_answers_and_streams_are_the_same_message() -> None:
    usage = Usage(7, 4, 2)
    with chat(*answer("Hello", ", you", usage=usage)) as (model, _):
        message = model.invoke([("system", "be short"), ("human", "hi")])
        chunks = list(model.stream("hi", stream_usage=True))
    assert message.content == "Hello, you"
    assert message.usage_metadata["input_token_details"] == {"audio": 0, "cache_read": 4}
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.content == message.content
    assert total.usage_metadata["total_tokens"] == message.usage_metadata["total_tokens"] == 9
    assert total.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called(streamed: bool) -> None:
    script: list[Step] = [
        Started(7),
        ToolCallStarted(0, 0, "call_a", "get_weather"),
        ToolCallDelta(0, 0, '{"city": '),
        ToolCallDelta(0, 0, '"Bern"}'),
        ToolCallEnded(0, 0, '{"city": "Bern"}'),
        ChoiceEnded(0, "tool_calls", usage=USAGE),
        Ended(USAGE),
    ]
    with chat(*script) as (model, service):
        bound = model.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
        if streamed:
            chunks = list(bound.stream("the weather in Bern?"))
            message = chunks[0]
            for chunk in chunks[1:]:
                message += chunk
        else:
            message = bound.invoke("the weather in Bern?")
    (call,) = message.tool_calls
    assert (call["id"], call["name"], call["args"]) == ("call_a", "get_weather", {"city": "Bern"})
    use = service.request.tool_use
    assert ([tool.name for tool in use.tools], use.choice, use.parallel) == (["get_weather"], "required", False)


def test_structured_output_is_held_to_its_schema() -> None:
    script: list[Step] = [
        Started(7), TextDelta(0, '{"answer": 4}'), ChoiceEnded(0, "stop", usage=USAGE), Ended(USAGE)
    ]  # fmt: skip
    schema = {"title": "sum", "type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    with chat(*script) as (model, service):
        structured = model.with_structured_output(schema, method="json_schema")
        assert structured.invoke("2 + 2") == {"answer": 4}
        constraint = service.request.options.constraint
        assert constraint is not None
        assert constraint.kind == "json_schema"
        model.with_structured_output(schema, method="json_mode").invoke("2 + 2")
        assert service.request.options.constraint == Constraint("json")
