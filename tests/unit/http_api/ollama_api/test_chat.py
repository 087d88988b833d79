"""Ollama's chat: its lines, tools, messages and options."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest

from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import (
    Queued,
    Started,
    TextDelta,
)
from edgepp.model.text.conversation import Conversation
from edgepp.tool_calls.tool_use import Tool
from tests.builders.ollama_lines import strict_lines
from tests.builders.scripted_service import Step, answer
from tests.unit.http_api.ollama_api.asking import CALL, call, question, sent, served, taken, with_sdk


def test_a_chat_is_streamed_unless_the_client_wants_it_whole() -> None:
    response = sent(served(), "POST", "/api/chat", question())
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    lines = strict_lines(response.content)
    whole = sent(served(), "POST", "/api/chat", question(stream=False)).json()
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"] == "Hello"
    assert whole["done"] is True
    timeless = {"message": None, "created_at": None}
    assert {**lines[-1], **timeless} == {**whole, **timeless}


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_a_body_is_json_whatever_its_content_type_says(kind: str) -> None:
    response = sent(served(), "POST", "/api/chat", question(stream=False), headers={"content-type": kind})
    assert response.json()["message"]["content"] == "Hello"


def test_the_answer_names_the_model_as_the_client_did() -> None:
    body = {**question(stream=False), "model": "smollm2-135m:latest"}
    assert sent(served(), "POST", "/api/chat", body).json()["model"] == "smollm2-135m:latest"
    del body["model"]
    assert sent(served(), "POST", "/api/chat", body).json()["model"] == "smollm2-135m"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "load"),
        ({"messages": []}, "load"),
        ({"messages": [], "keep_alive": "5m"}, "load"),
        ({"keep_alive": 0}, "unload"),
        ({"keep_alive": "0s"}, "unload"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_request_without_a_prompt_loads_or_unloads(path: str, body: dict[str, Any], reason: str) -> None:
    service = served()
    response = sent(service, "POST", path, {"model": "smollm2-135m", **body})
    assert response.json()["done"] is True
    assert response.json()["done_reason"] == reason
    assert not service.played


def test_the_sdk_joins_a_stream_to_the_whole_answer() -> None:
    async def work(client: ollama.AsyncClient) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        whole = await client.chat("smollm2-135m", messages)
        parts = [part async for part in await client.chat("smollm2-135m", messages, stream=True)]
        assert "".join(part.message.content or "" for part in parts) == whole.message.content == "Hello"
        assert parts[-1].eval_count == whole.eval_count == 2
        generated = await client.generate("smollm2-135m", "Hi")
        pieces = [piece async for piece in await client.generate("smollm2-135m", "Hi", stream=True)]
        assert "".join(piece.response or "" for piece in pieces) == generated.response == "Hello"
        assert pieces[-1].context == generated.context

    with_sdk(served(), work)


def test_tools_and_their_results_through_the_sdk() -> None:
    service = served(CALL, answer("Cold."))

    def weather(city: str) -> str:
        """Tell the weather.

        Args:
          city: Where.
        """
        return city

    async def work(client: ollama.AsyncClient) -> None:
        messages: list[Any] = [{"role": "user", "content": "Weather?"}]
        found = await client.chat("smollm2-135m", messages, tools=[weather])
        (call,) = found.message.tool_calls or []
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Oslo"})
        messages += [found.message, {"role": "tool", "tool_name": "weather", "content": "-3"}]
        assert (await client.chat("smollm2-135m", messages, tools=[weather])).message.content == "Cold."

    with_sdk(service, work)
    (tool,) = service.request.tool_use.tools
    assert (tool.name, tool.description) == ("weather", "Tell the weather.")
    assert tool.parameters["properties"] == {"city": {"type": "string", "description": "Where."}}
    prompt = service.request.prompt
    assert isinstance(prompt, Conversation)
    _, asked, result = prompt.messages
    assert asked["tool_calls"] == [
        {"id": "call00100", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    ]
    assert result == {"role": "tool", "content": "-3", "tool_call_id": "call00100", "name": "weather"}


def test_results_belong_to_calls_in_order_unless_they_name_one() -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": [call("a", {}), call("b", {}), call("a", {"n": 2})]}
    results = [
        {"role": "tool", "content": "B", "tool_name": "b"},
        *[{"role": "tool", "content": text} for text in "xy"],
    ]
    found = taken(served(), calls, *results)[1:]
    assert [(message["content"], message["name"], message["tool_call_id"]) for message in found] == [
        ("B", "b", "call00001"),
        ("x", "a", "call00000"),
        ("y", "a", "call00002"),
    ]


def test_ids_and_arguments_as_text_are_taken_from_clients_that_send_them() -> None:
    calls = {
        "role": "assistant",
        "tool_calls": [call("a", '{"x":1}', id="one", type="function"), call("a", None, id="two")],
    }
    asked, second, first = taken(
        served(),
        calls,
        {"role": "tool", "content": "2", "tool_call_id": "two"},
        {"role": "tool", "content": "1", "tool_call_id": "one"},
    )
    assert [each["function"]["arguments"] for each in asked["tool_calls"]] == [{"x": 1}, {}]
    assert (second["tool_call_id"], first["tool_call_id"]) == ("two", "one")


def test_content_in_parts_null_content_and_other_roles_are_taken() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = taken(
        served(),
        {"role": "developer", "content": "Be brief."},
        {"role": "User", "content": parts, "images": []},
        {"role": "assistant", "content": None, "thinking": "Hm"},
    )
    assert found == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm"},
    ]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            {"role": "user", "content": "x", "images": ["aGk="]},
            "this model does not support images (messages[0].images)",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0] is no text, and this model reads text alone",
        ),
        (
            {"role": "robot", "content": "x"},
            "messages[0].role must be one of system, developer, user, assistant, tool, not 'robot'",
        ),
        (
            {"role": "assistant", "tool_calls": [call("a", "[]")]},
            "messages[0]: the arguments of the call of a are no JSON object",
        ),
        ({"role": "user", "content": 3}, "messages[0].content must be text or a list, not 3"),
    ],
)
def test_a_message_that_cannot_be_taken_is_named(message: dict[str, Any], sentence: str) -> None:
    response = sent(served(), "POST", "/api/chat", {"messages": [message]})
    assert response.status_code == 400
    assert response.json() == {"error": sentence}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"{" * 2000])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show", "/api/pull"])
def test_a_body_that_is_no_object_is_refused(path: str, body: bytes) -> None:
    response = sent(served(), "POST", path, body)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]


def test_the_request_carries_options_format_and_thinking() -> None:
    service = served(thinks=True)
    body = question(options={"num_predict": 3, "temperature": 0}, format="json", think="low", tools=None, of_no_name=1)
    assert sent(service, "POST", "/api/chat", body).status_code == 200
    request = service.request
    assert (request.model, request.options.max_tokens, request.options.sampling.temperature) == ("smollm2-135m", 3, 0)
    assert request.options.constraint is not None
    assert isinstance(request.prompt, Conversation)
    assert request.prompt.variables == {"enable_thinking": True, "reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("last", "continues"),
    [
        ({"role": "assistant", "content": "Once upon"}, True),
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": "x", "tool_calls": [call("a", {})]}, False),
        ({"role": "user", "content": "Hi"}, False),
    ],
)
def test_the_answer_goes_on_where_the_last_message_is_an_assistants_text(last: dict[str, Any], continues: bool) -> None:
    service = served()
    taken(service, {"role": "user", "content": "Hi"}, last)
    assert isinstance(service.request.prompt, Conversation)
    assert service.request.prompt.continues is continues


def test_a_tool_without_a_name_is_refused() -> None:
    response = sent(served(), "POST", "/api/chat", question(tools=[{"function": {"name": ""}}]))
    assert response.status_code == 400
    assert response.json() == {"error": "tools[0].function has no name"}


def test_a_tool_may_lack_description_and_parameters() -> None:
    service = served()
    assert sent(
        service, "POST", "/api/chat", question(tools=[{"type": "function", "function": {"name": "a"}}])
    ).is_success
    assert service.request.tool_use.tools == (Tool("a"),)


def test_a_refusal_has_its_own_status_also_in_a_stream() -> None:
    refusal = RequestError("loading", "the model loads", "try again in 3 s", retry_after_s=3)
    response = sent(served([Queued("loading"), refusal]), "POST", "/api/chat", question())
    assert response.status_code == 503
    assert response.json() == {"error": "the model loads; try again in 3 s"}
    assert response.headers["retry-after"] == "3"


def test_an_answer_that_fails_in_the_middle_ends_with_a_line_that_says_so() -> None:
    script: list[Step] = [Started(7), TextDelta(0, "a"), RequestError("internal", "stage 1 is lost")]
    response = sent(served(script), "POST", "/api/chat", question())
    assert json.loads(response.content.splitlines()[-1]) == {"error": "stage 1 is lost"}

    with pytest.raises(ollama.ResponseError, match="stage 1 is lost"):
        with_sdk(served(script), lambda client: _all(client))
    assert sent(served(script), "POST", "/api/chat", question(stream=False)).status_code == 500


async def _all(client: ollama.AsyncClient) -> list[ollama.ChatResponse]:
    messages = [{"role": "user", "content": "x"}]
    return [part async for part in await client.chat("smollm2-135m", messages, stream=True)]
