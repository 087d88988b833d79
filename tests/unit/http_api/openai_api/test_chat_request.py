"""Bodies of chat completions as questions (clients.md C11 to C18)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from edgepp.engine.request import Constraint
from edgepp.errors import EdgeppError
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationRequest
from edgepp.http_api.openai_api.chat_request import ChatBody, generation_request
from edgepp.http_api.openai_api.content import ChatMessage
from edgepp.model.text.conversation import Conversation
from edgepp.tool_calls.tool_use import Tool, ToolUse
from tests.builders.scripted_service import SERVED

USER = {"role": "user", "content": "hi"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "get_time", "description": "the time", "strict": True}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def asked(**fields: Any) -> GenerationRequest:
    body = msgspec.json.decode(json.dumps({"messages": [USER]} | fields), type=ChatBody)
    scope = {"type": "http", "headers": [], "state": {"owner": "anna", "request_id": "r1"}}
    return generation_request(body, SERVED, Request(scope))


def conversation(*messages: dict[str, Any], **fields: Any) -> Conversation:
    prompt = asked(messages=list(messages), **fields).prompt
    assert isinstance(prompt, Conversation)
    return prompt


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        asked(**fields)
    return raised.value


def test_a_question_has_its_owner_and_id() -> None:
    request = asked(model="smollm2-135m:latest")
    assert (request.owner, request.request_id, request.model) == ("anna", "r1", "smollm2-135m:latest")
    assert request.num_choices == 1


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
        ([{"type": "input_text", "text": "one"}, "two"], "one\ntwo"),
        ([{"type": "refusal", "refusal": "no"}], "no"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "one"}], "one"),
        ([], ""),
        (None, ""),
        ("", ""),
    ],
)
def test_content_is_text_or_parts_or_null_in_every_role(role: str, content: Any, text: str) -> None:
    (message,) = conversation({"role": role, "content": content, "name": "x", "refusal": None, "audio": None}).messages
    assert message["content"] == text
    assert message["role"] == ("system" if role == "developer" else role)


def test_content_may_be_absent() -> None:
    assert conversation({"role": "assistant"}).messages[0]["content"] == ""


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "image", "made up"])
@pytest.mark.parametrize("role", ["user", "assistant", "tool", "system"])
def test_other_parts_are_refused_by_index(kind: str, role: str) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": kind, kind: {"url": "data:image/png;base64,AA"}}]
    error = refused(messages=[USER, {"role": role, "content": parts}])
    assert (error.kind, error.parameter) == ("unsupported_content", "messages[1].content[1]")
    assert "messages[1].content[1]" in str(error)
    assert kind in str(error)


def test_developer_and_system_notes_stay_where_they_are() -> None:
    roles = ["system", "user", "developer", "assistant", "system", "user"]
    messages = conversation(*[{"role": role, "content": str(n)} for n, role in enumerate(roles)]).messages
    assert [message["content"] for message in messages] == ["0", "1", "2", "3", "4", "5"]
    assert [message["role"] for message in messages] == ["system", "user", "system", "assistant", "system", "user"]


@pytest.mark.parametrize("arguments", ['{"city": "Bern"}', {"city": "Bern"}])
def test_calls_of_the_history_have_objects_as_arguments(arguments: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = conversation(
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ).messages
    function = {"name": "get_weather", "arguments": {"city": "Bern"}}
    called = [{"id": "call_1", "type": "function", "function": function}]
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": called}
    assert messages[2] == {"role": "tool", "content": "rain", "tool_call_id": "call_1"}


@pytest.mark.parametrize("arguments", ["", "  ", None])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    call = {"function": {"name": "now", "arguments": arguments}}
    (message,) = conversation({"role": "assistant", "tool_calls": [call]}).messages
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("arguments", ['{"city": "Be', "[1]", "null", "[" * 5000])
def test_broken_arguments_of_the_history_are_kept(arguments: str) -> None:
    call = {"function": {"name": "now", "arguments": arguments}}
    (message,) = conversation({"role": "assistant", "tool_calls": [call]}).messages
    assert message["tool_calls"][0]["function"]["arguments"] == {"arguments": arguments}


def test_reasoning_of_the_history_is_kept_for_the_template() -> None:
    (message,) = conversation(
        {"role": "assistant", "content": "4", "reasoning_content": "2 + 2", "reasoning": "x"}
    ).messages
    assert message == {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}


def test_old_function_calls_are_refused_by_name() -> None:
    assert refused(functions=[{"name": "f"}]).parameter == "functions"
    assert refused(function_call="auto").parameter == "function_call"
    assert refused(messages=[{"role": "function", "name": "f", "content": "1"}]).parameter == "messages[0].role"
    call = {"name": "f", "arguments": "{}"}
    error = refused(messages=[{"role": "assistant", "function_call": call}])
    assert error.parameter == "messages[0].function_call"
    asked(functions=None, function_call=None)
    asked(functions=[])
    asked(messages=[{"role": "assistant", "content": "x", "function_call": None}])


def test_no_messages_are_refused() -> None:
    assert refused(messages=[]).parameter == "messages"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 2048),
        ({"max_tokens": None}, 2048),
        ({"max_tokens": -1}, 2048),
        ({"max_tokens": 0}, 2048),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 32_000}, 2048),
        ({"max_tokens": 10**30}, 2048),
        ({"max_completion_tokens": 10**30}, 2048),
        ({"max_completion_tokens": 7, "max_tokens": 5}, 7),
        ({"max_completion_tokens": -1, "max_tokens": 5}, 2048),
        ({"max_completion_tokens": None, "max_tokens": 5}, 5),
        ({"max_completion_tokens": 2**62}, 2048),
    ],
)
def test_the_length_is_clamped_to_the_context(fields: dict[str, Any], tokens: int) -> None:
    assert asked(**fields).options.max_tokens == tokens


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({}, "temperature", 0.2),
        ({}, "top_p", 0.9),
        ({"temperature": None}, "temperature", 0.2),
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 1}, "temperature", 1.0),
        ({"top_p": 1}, "top_p", 1.0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": 40}, "top_k", 40),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"seed": -1}, "seed", None),
        ({"seed": None}, "seed", None),
        ({"seed": 42}, "seed", 42),
        ({"seed": (1 << 64) - 1}, "seed", (1 << 64) - 1),
        ({"presence_penalty": 1, "frequency_penalty": None}, "presence_penalty", 1.0),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"repetition_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"logit_bias": {}}, "logit_bias", ()),
        ({"logit_bias": None}, "logit_bias", ()),
        ({"logit_bias": {"50": -100, "7": 1.5}}, "logit_bias", ((50, -100.0), (7, 1.5))),
        ({"logprobs": False}, "logprobs", None),
        ({"logprobs": None, "top_logprobs": None}, "logprobs", None),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "logprobs", 20),
    ],
)
def test_sampling_options(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(asked(**fields).options.sampling, name) == value


@pytest.mark.parametrize(
    ("stop", "stops"), [(None, ()), ("", ()), ([], ()), ("a", ("a",)), (["a", "", "b"], ("a", "b"))]
)
def test_stop_strings(stop: Any, stops: tuple[str, ...]) -> None:
    assert asked(stop=stop).options.stop == stops


@pytest.mark.parametrize(
    ("form", "constraint"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json")),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}, SCHEMA),
        ({"type": "json_schema", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
    ],
)
def test_response_formats(form: Any, constraint: Any) -> None:
    found = asked(response_format=form).options.constraint
    if isinstance(constraint, dict):
        assert found is not None
        assert (found.kind, json.loads(found.text)) == ("json_schema", {**constraint, "additionalProperties": False})
    else:
        assert found == constraint


def test_a_response_format_without_schema_is_refused() -> None:
    for form in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}}):
        assert refused(response_format=form).parameter == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"n": 0},
        {"n": 17},
        {"max_tokens": -2},
        {"max_tokens": True},
        {"top_logprobs": 21, "logprobs": True},
        {"top_logprobs": 2},
        {"presence_penalty": 2.1},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"1_0": 1}},
        {"logit_bias": {" 1": 1}},
        {"logit_bias": {"٣": 1}},
        {"logit_bias": {"1" * 5000: 1}},
        {"stop": ["x"] * 17},
        {"stop": 5},
        {"response_format": {"type": "xml"}},
        {"messages": [{"role": "narrator", "content": "x"}]},
        {"messages": [{"content": "x"}]},
        {"messages": "hi"},
        {"tools": "all"},
        {"modalities": ["text", "audio"]},
        {"seed": 1.5},
        {"continue_final_message": True},
    ],
)
def test_wrong_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((EdgeppError, msgspec.ValidationError)):
        asked(**fields)


def test_fields_of_other_servers_are_ignored() -> None:
    plain = asked()
    many = asked(
        store=True,
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        service_tier="auto",
        verbosity="low",
        modalities=["text"],
        prediction={"type": "content", "content": "x"},
        web_search_options={},
        reasoning_effort="low",
        session_id="1",
        chat_id="2",
        options={"num_ctx": 5},
        stream_options={"include_usage": True},
        audio=None,
        unheard_of={"deep": [1]},
    )
    assert many == plain


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
)
KNOWN = set(ChatBody.__struct_fields__)


@given(st.dictionaries(st.text().filter(lambda name: name not in KNOWN), JSON, max_size=4))
def test_unknown_fields_change_nothing(fields: dict[str, Any]) -> None:
    message = USER | {name: value for name, value in fields.items() if name not in ChatMessage.__struct_fields__}
    body = msgspec.json.decode(json.dumps({"messages": [message]} | fields), type=ChatBody)
    assert body == msgspec.json.decode(json.dumps({"messages": [USER]}), type=ChatBody)


def test_template_variables_and_continuing_reach_the_prompt() -> None:
    assert conversation(USER, chat_template_kwargs={"enable_thinking": False}).variables == {"enable_thinking": False}
    assert not conversation(USER).continues
    assert conversation(USER, {"role": "assistant", "content": "Once"}, continue_final_message=True).continues


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, ToolUse()),
        ({"tools": [], "tool_choice": None}, ToolUse()),
        ({"tools": None, "tool_choice": "auto"}, ToolUse()),
        ({"tools": [], "tool_choice": "none"}, ToolUse(choice="none")),
    ],
)
def test_no_tools(fields: dict[str, Any], use: ToolUse) -> None:
    assert asked(**fields).tool_use == use


W, T = Tool("get_weather", parameters={"type": "object"}), Tool("get_time", "the time", strict=True)


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, ToolUse((W, T))),
        ({"tool_choice": None, "parallel_tool_calls": None}, ToolUse((W, T))),
        ({"tool_choice": "required"}, ToolUse((W, T), "required")),
        ({"tool_choice": "none"}, ToolUse((W, T), "none")),
        ({"parallel_tool_calls": False}, ToolUse((W, T), parallel=False)),
        (
            {"tool_choice": {"type": "function", "function": {"name": "get_time"}}},
            ToolUse((W, T), "required", "get_time"),
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TIME]}}},
            ToolUse((T,), "required"),
        ),
    ],
)
def test_tool_choices(fields: dict[str, Any], use: ToolUse) -> None:
    assert asked(tools=[WEATHER, TIME], **fields).tool_use == use


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [WEATHER, {"type": "function"}]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ],
)
def test_wrong_tools_are_named(fields: dict[str, Any], parameter: str) -> None:
    assert refused(**fields).parameter == parameter
