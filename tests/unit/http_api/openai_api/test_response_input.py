"""Input items and tools of the Responses API, in every form that clients send."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseInputItemParam

from edgepp.http_api.failures import RequestError
from edgepp.http_api.openai_api.response_body import ResponsesBody, all_tools, check_stateless, response_format
from edgepp.http_api.openai_api.response_input import decoded_messages
from edgepp.http_api.openai_api.response_tools import DeclaredTool, Tools, decoded_tools
from tests.builders.properties import examples

CALL = {"type": "function_call", "call_id": "call_a", "name": "shell", "arguments": '{"cmd": "ls"}'}
TOLD_CALL = {"id": "call_a", "type": "function", "function": {"name": "shell", "arguments": {"cmd": "ls"}}}
USER = {"role": "user", "content": "hi"}


def body(**fields: Any) -> ResponsesBody:
    return msgspec.json.decode(msgspec.json.encode(fields), type=ResponsesBody)


def messages(*items: Any, **fields: Any) -> list[Any]:
    return list(decoded_messages(body(input=list(items), **fields)))


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(body(**fields))
    return caught.value


def decode(one: ResponsesBody) -> list[Any]:
    check_stateless(one)
    response_format(one.text)
    return list(decoded_messages(one))


def tools(*specs: Any, choice: Any = None, parallel: bool = True) -> Tools:
    one = body(tools=list(specs), tool_choice=choice)
    return decoded_tools(all_tools(one), one.tool_choice, parallel)


def test_a_string_is_a_message_of_the_user() -> None:
    assert decoded_messages(body(input="hi")) == [USER]


@pytest.mark.parametrize(
    "item",
    [
        USER,
        {"type": "message", **USER},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "user", "content": ["hi"]},
        {"type": "message", "id": "msg_1", "status": "completed", **USER},
    ],
)
def test_a_message_may_lack_its_type_and_have_parts(item: Any) -> None:
    assert messages(item) == [USER]


@pytest.mark.parametrize("more", [{}, {"id": "msg_1", "status": "completed", "type": "message"}])
def test_an_assistants_output_may_lack_id_and_status(more: Any) -> None:
    part = {"type": "output_text", "text": "yes"}
    assert messages(USER, {"role": "assistant", "content": [part], **more})[1] == {
        "role": "assistant",
        "content": "yes",
    }


def test_system_and_developer_notes_stay_where_they_are() -> None:
    note = {"role": "developer", "content": "be brief"}
    assert messages(note, USER, note, USER, instructions="be kind") == [
        {"role": "system", "content": "be kind"},
        {"role": "system", "content": "be brief"},
        USER,
        {"role": "system", "content": "be brief"},
        USER,
    ]


def test_calls_belong_to_the_answer_before_them_and_results_to_their_calls() -> None:
    other = {**CALL, "call_id": "call_b", "arguments": ""}
    outputs = [
        {"type": "function_call_output", "call_id": "call_a", "output": "a.txt"},
        {"type": "function_call_output", "call_id": "call_b", "output": [{"type": "input_text", "text": "b.txt"}]},
    ]
    told = messages(USER, {"role": "assistant", "content": "I look."}, CALL, other, *outputs)
    told_other = {"id": "call_b", "type": "function", "function": {"name": "shell", "arguments": {}}}
    assert told[1:] == [
        {"role": "assistant", "content": "I look.", "tool_calls": [TOLD_CALL, told_other]},
        {"role": "tool", "tool_call_id": "call_a", "name": "shell", "content": "a.txt"},
        {"role": "tool", "tool_call_id": "call_b", "name": "shell", "content": "b.txt"},
    ]


def test_a_call_alone_is_a_message_without_content() -> None:
    assert messages(USER, CALL)[1] == {"role": "assistant", "content": None, "tool_calls": [TOLD_CALL]}


def test_text_after_a_call_joins_the_calls_message() -> None:
    told = messages(USER, CALL, {"role": "assistant", "content": "wait"})
    assert told[1] == {"role": "assistant", "content": "wait", "tool_calls": [TOLD_CALL]}
    assert len(told) == 2


@pytest.mark.parametrize("arguments", ['{"cmd": ', "[1]", "ls"])
def test_broken_arguments_of_the_history_are_kept(arguments: str) -> None:
    told = messages(USER, {**CALL, "arguments": arguments})[1]
    assert told["tool_calls"][0]["function"]["arguments"] == {"arguments": arguments}


def test_custom_calls_and_namespaces_have_the_names_that_the_model_knows() -> None:
    custom = {"type": "custom_tool_call", "call_id": "call_c", "name": "apply_patch", "input": "*** Begin"}
    output = {"type": "custom_tool_call_output", "call_id": "call_c", "output": "done"}
    member = {**CALL, "namespace": "agents"}
    told = messages(USER, custom, output, member)
    assert told[1]["tool_calls"][0]["function"] == {"name": "apply_patch", "arguments": {"input": "*** Begin"}}
    assert told[2] == {"role": "tool", "tool_call_id": "call_c", "name": "apply_patch", "content": "done"}
    assert told[3]["tool_calls"][0]["function"]["name"] == "agents.shell"


@pytest.mark.parametrize("output", [{"content": "x", "success": True}, "x"])
def test_an_older_form_of_results_is_read(output: Any) -> None:
    told = messages(USER, CALL, {"type": "function_call_output", "call_id": "call_a", "output": output})
    assert told[2]["content"] == "x"


def test_a_message_of_another_agent_is_told_with_its_author() -> None:
    item = {"type": "agent_message", "author": "/root/a", "content": [{"type": "input_text", "text": "done"}]}
    assert messages(USER, item)[1] == {"role": "user", "content": "Message from /root/a:\ndone"}


def test_reasoning_and_the_work_of_other_servers_are_left_out() -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"}
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    assert messages(USER, reasoning, search, USER) == [USER, USER]


@pytest.mark.parametrize(
    ("item", "parameter"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[0]"),
        ({"id": "msg_1"}, "input[0]"),
        ({"type": "telepathy"}, "input[0].type"),
        ({"role": "king", "content": "x"}, "input[0].role"),
        ({"type": "function_call", "call_id": "a", "arguments": "{}"}, "input[0].name"),
        ({"type": "function_call", "name": "a", "arguments": "{}"}, "input[0].call_id"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        ({"type": "compaction", "encrypted_content": "…"}, "input[0].type"),
    ],
)
def test_an_item_that_cannot_be_read_is_named(item: Any, parameter: str) -> None:
    assert refused(input=[item]).parameter == parameter


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
@pytest.mark.parametrize("where", ["content", "output"])
def test_what_is_no_text_is_refused_by_its_place(kind: str, where: str) -> None:
    part = {"type": kind, "image_url": "data:image/png;base64,AA=="}
    item = {"role": "user", "content": [{"type": "input_text", "text": "see"}, part]}
    if where == "output":
        item = {"type": "function_call_output", "call_id": "call_a", "output": [{"type": "input_text"}, part]}
        item["output"][0]["text"] = "see"  # type: ignore[index]
    error = refused(input=[USER, CALL, item])
    assert (error.kind, error.parameter) == ("unsupported_content", f"input[2].{where}[1]")
    assert kind in str(error)


@pytest.mark.parametrize("fields", [{}, {"input": []}, {"input": None}])
def test_an_empty_input_is_refused(fields: Any) -> None:
    assert refused(**fields).parameter == "input"


@pytest.mark.parametrize(
    ("name", "value"),
    [("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("prompt", {"id": "p"}), ("background", True)],
)
def test_what_needs_a_stored_response_is_refused_loudly(name: str, value: Any) -> None:
    assert refused(input="hi", **{name: value}).parameter == name


def test_fields_that_change_nothing_are_accepted() -> None:
    one = body(
        input="hi",
        text={},
        include=["reasoning.encrypted_content"],
        store=False,
        truncation="auto",
        background=False,
        conversation=None,
        previous_response_id=None,
        metadata=None,
        service_tier="auto",
        prompt_cache_key="k",
        client_metadata={"a": "b"},
        reasoning={"effort": None, "summary": "auto"},
        user="u",
    )
    check_stateless(one)
    assert response_format(one.text) is None


@pytest.mark.parametrize("text", [None, {"format": None}, {"format": {"type": "text"}}, {"verbosity": "low"}])
def test_text_without_a_form_is_free(text: Any) -> None:
    assert response_format(body(text=text).text) is None


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    ],
)
def test_a_schema_is_read_at_either_depth(form: Any) -> None:
    told = response_format(body(text={"format": form}).text)
    assert told is not None
    assert (told.type, told.schema) == ("json_schema", {"type": "object"})


@pytest.mark.parametrize("form", [{"type": "json_schema"}, {"type": "yaml"}])
def test_a_form_that_cannot_be_held_is_refused(form: Any) -> None:
    assert (refused(input="hi", text={"format": form}).parameter or "").startswith("text.format")


FUNCTION = {"type": "function", "name": "shell", "description": "d", "parameters": {"type": "object"}, "strict": True}
CUSTOM = {"type": "custom", "name": "apply_patch", "description": "Patches.", "format": {"type": "text"}}
NAMESPACE = {
    "type": "namespace",
    "name": "agents",
    "description": "n",
    "tools": [{"type": "function", "name": "close"}],
}


def test_tools_are_functions_for_the_model_and_keep_their_names_for_the_client() -> None:
    told = tools(FUNCTION, CUSTOM, NAMESPACE)
    assert [tool.name for tool in told.use.tools] == ["shell", "apply_patch", "agents.close"]
    assert told.use.tools[0].strict
    assert list(told.use.tools[1].parameters["properties"]) == ["input"]
    assert told.declared["agents.close"] == DeclaredTool("close", "agents")
    assert told.declared["apply_patch"].custom


def test_a_function_may_be_nested_as_in_chat_completions() -> None:
    told = tools({"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}})
    assert told.use.tools[0].name == "shell"


def test_the_grammar_of_a_custom_tool_is_told_to_the_model() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
    description = tools({**CUSTOM, "format": grammar}).use.tools[0].description
    assert description.startswith("Patches.")
    assert description.endswith("lark grammar:\nstart: /x+/")


@pytest.mark.parametrize("kind", ["web_search", "local_shell", "image_generation", "mcp", "tool_search", "new_one"])
def test_tools_of_other_servers_are_left_out(kind: str) -> None:
    assert [tool.name for tool in tools({"type": kind, "server_label": "x"}, FUNCTION).use.tools] == ["shell"]


@pytest.mark.parametrize(("added", "place"), [("x", ""), ([1], "[0]"), ([{"type": "function", "name": 1}], "[0].name")])
def test_tools_that_are_none_are_named(added: Any, place: str) -> None:
    with pytest.raises(RequestError) as caught:
        all_tools(body(input=[USER, {"type": "additional_tools", "tools": added}]))
    assert caught.value.parameter == f"input[1].tools{place}"


def test_input_may_add_tools() -> None:
    one = body(input=[USER, {"type": "additional_tools", "role": "developer", "tools": [CUSTOM]}], tools=[FUNCTION])
    assert [tool.name for tool in all_tools(one)] == ["shell", "apply_patch"]
    assert len(decoded_messages(one)) == 1


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, 3)),
        ("auto", ("auto", None, 3)),
        ("none", ("none", None, 3)),
        ("required", ("required", None, 3)),
        ({"type": "function", "name": "shell"}, ("required", "shell", 3)),
        ({"type": "function", "function": {"name": "shell"}}, ("required", "shell", 3)),
        ({"type": "custom", "name": "apply_patch"}, ("required", "apply_patch", 3)),
        ({"type": "function", "name": "close", "namespace": "agents"}, ("required", "agents.close", 3)),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "shell"}]},
         ("required", None, 1)),
    ],
)  # fmt: skip
def test_a_choice_is_one_of_the_tools(choice: Any, expected: Any) -> None:
    use = tools(FUNCTION, CUSTOM, NAMESPACE, choice=choice).use
    assert (use.choice, use.named, len(use.tools)) == expected


@pytest.mark.parametrize("choice", [{"type": "function", "name": "x"}, {"type": "web_search"}, {"type": "function"}])
def test_a_choice_of_no_tool_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError, match="tool_choice"):
        tools(FUNCTION, choice=choice)


@pytest.mark.parametrize("specs", [[FUNCTION, FUNCTION], [{"type": "function"}], [{"type": "namespace", "tools": []}]])
def test_tools_without_a_name_of_their_own_are_refused(specs: list[Any]) -> None:
    with pytest.raises(RequestError, match=r"declared twice|needs a name"):
        tools(*specs)


def test_one_call_at_a_time_if_so_asked() -> None:
    assert not tools(FUNCTION, parallel=False).use.parallel


ITEMS = [
    one
    for one in get_args(ResponseInputItemParam)
    if one.__name__
    not in ("AdditionalTools", "McpListTools", "ToolSearchCall", "ResponseToolSearchOutputItemParamParam")
]
"""Types of the SDK that hypothesis makes soon; the others hold any object of Python."""


def plain(value: Any) -> Any:
    """JSON of what hypothesis makes: iterators where the SDK allows them, and any object where it allows that."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    return [plain(one) for one in value] if isinstance(value, Iterable) else None


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=examples(50))
@given(st.lists(st.sampled_from(ITEMS).flatmap(st.from_type), min_size=1, max_size=2))
def test_any_input_of_the_sdks_types_is_read_or_refused(items: list[Any]) -> None:
    told: list[Any] = []
    with contextlib.suppress(RequestError, msgspec.ValidationError):  # an empty mapping is iterable too
        one = body(input=plain(items))
        told = decode(one)
        decoded_tools(all_tools(one), None, parallel=True)
    assert all(message["role"] in ("system", "user", "assistant", "tool") for message in told)
