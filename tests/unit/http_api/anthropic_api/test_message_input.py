"""Anthropic's bodies as requests: system prompt, blocks, tools and options."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import UsageError
from edgepp.http_api.anthropic_api.message_body import MessagesBody
from edgepp.http_api.anthropic_api.message_input import conversation, generation_request, marks_cache
from edgepp.http_api.anthropic_api.message_tools import tool_use
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import GenerationRequest
from edgepp.model.text.conversation import Message
from tests.builders.scripted_service import SERVED

ASK = {"role": "user", "content": "hi"}
SEARCH = {"name": "search", "description": "Finds", "input_schema": {"type": "object", "properties": {}}}


def decoded(**fields: Any) -> MessagesBody:
    return msgspec.json.decode(json.dumps({"messages": [ASK], **fields}), type=MessagesBody)


def request(**fields: Any) -> GenerationRequest:
    return generation_request(decoded(**fields), SERVED)


def messages(*given: dict[str, Any], **fields: Any) -> list[Message]:
    return list(conversation(decoded(messages=list(given), **fields)).messages)


def system_of(system: Any) -> list[Message]:
    return messages(ASK, system=system)[:-1]


def text(words: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **fields}


def tool_call(identity: str, name: str = "search", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": identity, "name": name, "input": arguments}


def tool_result(identity: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identity, "content": content, **fields}


def test_a_system_prompt_is_a_string_or_blocks() -> None:
    assert system_of("Be brief.") == [{"role": "system", "content": "Be brief."}]
    assert system_of([text("Be"), text("brief", cache_control={"type": "ephemeral"})]) == [
        {"role": "system", "content": "Be\n\nbrief"}
    ]
    assert system_of(None) == system_of([]) == system_of("") == []


@pytest.mark.parametrize("build", ["cc_version=2.1.36.a1; cc_entrypoint=cli;", "cch=00000;", ""])
def test_system_blocks_that_change_with_every_request_are_dropped(build: str) -> None:
    header = text(f"x-anthropic-billing-header: {build}")
    assert system_of([header, text("Be brief.")]) == [{"role": "system", "content": "Be brief."}]
    assert system_of([header]) == []
    assert system_of(header["text"]) == []


def test_only_the_beginning_of_a_system_block_makes_it_a_volatile_header() -> None:
    mentioned = "Never print x-anthropic-billing-header: lines."
    assert system_of(mentioned) == [{"role": "system", "content": mentioned}]
    assert messages({"role": "user", "content": "x-anthropic-billing-header: a"})[0]["content"].endswith(": a")


def test_system_notes_stay_where_they_are() -> None:
    note = {"role": "system", "content": "<total_tokens>170000 tokens left</total_tokens>"}
    answer = {"role": "assistant", "content": "hello"}
    assert [message["role"] for message in messages(ASK, note, answer, ASK, {**note, "content": [text("b")]})] == [
        "user",
        "system",
        "assistant",
        "user",
        "system",
    ]


def test_a_note_is_kept_when_the_client_would_take_it_back() -> None:
    note = {"role": "system", "content": "soon", "clear_at": "next_user_message"}
    assert messages(ASK, note, ASK)[1] == {"role": "system", "content": "soon"}


def test_tool_calls_and_results_keep_their_order() -> None:
    calls = [text("Looking."), tool_call("toolu_1", query="a"), tool_call("toolu_2", "read", path="b")]
    results = [tool_result("toolu_1", "one"), tool_result("toolu_2", [text("two"), text("2")]), text("go on")]
    first, second, third, fourth = messages(
        {"role": "assistant", "content": calls}, {"role": "user", "content": results}
    )
    assert first == {
        "role": "assistant",
        "content": "Looking.",
        "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": {"name": "search", "arguments": {"query": "a"}}},
            {"id": "toolu_2", "type": "function", "function": {"name": "read", "arguments": {"path": "b"}}},
        ],
    }
    assert second == {"role": "tool", "tool_call_id": "toolu_1", "name": "search", "content": "one"}
    assert third == {"role": "tool", "tool_call_id": "toolu_2", "name": "read", "content": "two\n2"}
    assert fourth == {"role": "user", "content": "go on"}


@pytest.mark.parametrize(
    ("content", "is_error", "told"),
    [
        (None, False, ""),
        (None, True, "Error: the tool failed"),
        ("no such file", True, "Error: no such file"),
        ("", None, ""),
        ([], False, ""),
        ([{"type": "tool_reference", "tool_name": "WebFetch"}], False, "The tool WebFetch is available."),
        ([{"type": "search_result", "title": "T", "source": "s", "content": [text("found")]}], False, "T\nfound"),
    ],
)
def test_a_tool_result_has_any_content(content: Any, is_error: bool | None, told: str) -> None:
    (result,) = messages({"role": "user", "content": [tool_result("x", content, is_error=is_error)]})
    assert result["content"] == told


def test_a_tool_result_may_leave_out_its_content() -> None:
    (result,) = messages({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]})
    assert result["content"] == ""


@pytest.mark.parametrize("content", [5, {"type": "text"}, [5], [{"text": "no type"}]])
def test_a_tool_result_with_no_content_of_the_api_is_refused(content: Any) -> None:
    with pytest.raises(RequestError, match=r"messages\[0\].content\[0\].content") as caught:
        messages({"role": "user", "content": [tool_result("x", content)]})
    assert caught.value.kind == "invalid_request"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="}},
        {"type": "container_upload", "file_id": "f"},
        {"type": "something_new"},
    ],
)
def test_other_content_than_text_is_refused_by_its_place(block: dict[str, Any]) -> None:
    for content, place in (
        ([text("see"), block], "messages[1].content[1]"),
        ([tool_result("x", [text("a"), block])], "messages[1].content[0].content[1]"),
    ):
        with pytest.raises(RequestError) as caught:
            messages(ASK, {"role": "user", "content": content})
        assert caught.value.kind == "unsupported_content"
        assert caught.value.parameter == place
        assert block["type"] in str(caught.value)


def test_thinking_and_blocks_of_servers_in_the_history_are_accepted() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "abc"},
        {"type": "thinking", "thinking": " Yes."},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        text("Done", citations=None),
        text("."),
    ]
    (answer, _) = messages({"role": "assistant", "content": content}, ASK)
    assert answer == {"role": "assistant", "content": "Done.", "reasoning_content": "Hm. Yes."}


def test_a_document_of_text_is_text() -> None:
    document = {
        "type": "document",
        "title": "Notes",
        "source": {"type": "text", "media_type": "text/plain", "data": "a"},
    }
    assert messages({"role": "user", "content": [document, text("sum up")]})[0]["content"] == "Notes\na\nsum up"
    told = {**document, "context": "of May"}
    assert messages({"role": "user", "content": [told]})[0]["content"] == "Notes\nof May\na"


@pytest.mark.parametrize(("content", "words"), [("a", "a"), ([text("a"), text("b")], "a\nb"), ([], ""), (None, "")])
def test_a_document_of_blocks_is_their_text(content: Any, words: str) -> None:
    document = {"type": "document", "source": {"type": "content", "content": content}}
    assert messages({"role": "user", "content": [document]})[0]["content"] == words
    result = messages({"role": "user", "content": [tool_result("x", [document])]})[0]
    assert (result["role"], result["content"]) == ("tool", words)


def test_an_image_in_a_document_of_blocks_is_refused_by_its_place() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    document = {"type": "document", "source": {"type": "content", "content": [text("a"), image]}}
    with pytest.raises(RequestError) as caught:
        messages({"role": "user", "content": [document]})
    assert caught.value.parameter == "messages[0].content[0].source.content[1]"


def test_results_of_tools_of_servers_in_a_users_message_are_left_out() -> None:
    blocks = [{"type": "mcp_tool_result", "tool_use_id": "m", "content": "x"}, text("go on")]
    assert messages({"role": "user", "content": blocks}) == [{"role": "user", "content": "go on"}]


def test_sets_of_tools_of_servers_are_left_out_and_need_no_name() -> None:
    sets = [{"type": "mcp_toolset", "mcp_server_name": "x"}, {"type": "browser_toolset_20260801"}, SEARCH]
    assert [tool.name for tool in tool_use(decoded(tools=sets)).tools] == ["search"]


def test_tools_that_change_in_mid_conversation_are_told_in_place() -> None:
    named = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "fetch"}}
    defined = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": SEARCH}}
    gone = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "fetch"}}
    asked = [ASK, {"role": "system", "content": [named, defined, gone]}]
    first, second, third = messages(*asked)[1]["content"].split("\n")
    assert first == "The tool fetch is available."
    assert second.startswith('The tool search is available: {"description": "Finds", "parameters": {"type"')
    assert third == "The tool fetch is no longer available."
    assert [(one.name, one.listed) for one in tool_use(decoded(messages=asked)).tools] == [("search", False)]


def test_a_deferred_tool_is_told_where_a_search_found_it() -> None:
    tools = [{**SEARCH, "name": name, "defer_loading": True} for name in ("fetch", "never")] + [SEARCH]
    asked = [ASK, {"role": "assistant", "content": [tool_call("x", "find")]}]
    found = [{"type": "tool_reference", "tool_name": "fetch"}, {"type": "tool_reference", "tool_name": "search"}]
    result = {"role": "user", "content": [tool_result("x", found)]}
    before, after = (decoded(messages=given_, tools=tools) for given_ in (asked, [*asked, result]))
    assert [(one.name, one.listed) for one in tool_use(before).tools] == [("search", True)]
    assert [(one.name, one.listed) for one in tool_use(after).tools] == [("search", True), ("fetch", False)]
    assert conversation(after).messages[:2] == conversation(before).messages
    told, listed = conversation(after).messages[2]["content"].split("\n")
    assert told.startswith('The tool fetch is available: {"description": "Finds"')
    assert listed == "The tool search is available."


def test_the_answer_continues_an_assistants_last_message() -> None:
    begun = conversation(decoded(messages=[ASK, {"role": "assistant", "content": "The answer is (  \n"}]))
    assert begun.continues
    assert begun.messages[-1]["content"] == "The answer is ("


def test_a_last_message_of_white_space_begins_nothing() -> None:
    begun = conversation(decoded(messages=[ASK, {"role": "assistant", "content": " \n"}]))
    assert not begun.continues
    assert [message["role"] for message in begun.messages] == ["user"]


def test_a_call_at_the_end_is_not_continued() -> None:
    assert not conversation(decoded(messages=[ASK, {"role": "assistant", "content": [tool_call("x")]}])).continues


def test_no_message_at_all_is_refused() -> None:
    with pytest.raises(RequestError, match="at least one message"):
        conversation(decoded(messages=[]))


@pytest.mark.parametrize("block", [{"type": "tool_use", "id": "x"}, {"type": "tool_use", "name": "f", "input": "{}"}])
def test_a_call_without_name_or_object_is_refused(block: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="tool_use"):
        messages({"role": "assistant", "content": [block]}, ASK)


def test_tools_of_servers_are_left_out() -> None:
    tools = [
        SEARCH,
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"type": "bash_20250124", "name": "bash"},
        {**SEARCH, "name": "own", "type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}},
    ]
    found = tool_use(decoded(tools=tools)).tools
    assert [(tool.name, tool.strict) for tool in found] == [("search", False), ("own", True)]
    assert found[0].description == "Finds"
    assert found[0].parameters == SEARCH["input_schema"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, True)),
        ({"type": "auto"}, ("auto", None, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None, False)),
        ({"type": "any"}, ("required", None, True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", None, False)),
        ({"type": "tool", "name": "search"}, ("required", "search", True)),
        ({"type": "none"}, ("none", None, True)),
    ],
)
def test_tool_choice(choice: Any, expected: tuple[str, str | None, bool]) -> None:
    found = tool_use(decoded(tools=[SEARCH], tool_choice=choice))
    assert (found.choice, found.named, found.parallel) == expected


@pytest.mark.parametrize("choice", [{"type": "tool", "name": "other"}, {"type": "tool"}])
def test_a_choice_of_no_tool_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError, match=r"tool_choice"):
        tool_use(decoded(tools=[SEARCH], tool_choice=choice))
    with pytest.raises(RequestError, match="no tool to call"):
        tool_use(decoded(tool_choice={"type": "any"}))


@pytest.mark.parametrize(
    ("thinking", "thinks"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive", "display": "updates"}, True),
        ({"type": "between_tools"}, True),
    ],
)
def test_thinking_is_a_variable_of_the_template(thinking: Any, thinks: bool) -> None:
    assert conversation(decoded(thinking=thinking)).variables == {"enable_thinking": thinks}


@pytest.mark.parametrize(("effort", "told"), [("low", "low"), ("high", "high"), ("xhigh", "high"), ("max", "high")])
def test_effort_is_a_variable_of_the_template(effort: str, told: str) -> None:
    assert conversation(decoded(output_config={"effort": effort})).variables["reasoning_effort"] == told


@pytest.mark.parametrize("form", [{"output_config": {"format": {}}}, {"output_format": {}}])
def test_a_schema_holds_the_answer(form: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    asked = json.loads(json.dumps(form).replace("{}", json.dumps({"type": "json_schema", "schema": schema})))
    constraint = request(**asked).options.constraint
    assert constraint is not None
    closed = {**schema, "additionalProperties": False}
    assert (constraint.kind, json.loads(constraint.text)) == ("json_schema", closed)
    with pytest.raises(RequestError, match="json_schema"):
        request(output_format={"type": "xml"})


def test_options_of_the_client_win_over_those_of_the_models_makers() -> None:
    recommended = request(max_tokens=5).options.sampling
    assert (recommended.temperature, recommended.top_p) == (0.2, 0.9)
    given_ = request(max_tokens=5, temperature=0, top_p=1, top_k=-1).options.sampling
    assert (given_.temperature, given_.top_p, given_.top_k) == (0.0, 1.0, 0)


def test_an_answer_may_ask_for_more_than_fits() -> None:
    assert request(max_tokens=32_000).options.max_tokens == 32_000
    assert request(max_tokens=10**18).options.max_tokens == request().options.max_tokens
    assert request(max_tokens=10**30).options.max_tokens == request().options.max_tokens
    assert request(max_tokens=-1).options.max_tokens == request().options.max_tokens
    assert request(max_tokens=0).options.max_tokens == 1


def test_stop_sequences() -> None:
    assert request(stop_sequences=["\n\nHuman:", ""]).options.stop == ("\n\nHuman:",)
    assert request(stop_sequences=None).options.stop == ()
    with pytest.raises(UsageError, match="stop strings"):
        request(stop_sequences=["a"] * 99)


def test_fields_that_mean_nothing_here_are_ignored() -> None:
    fields: dict[str, Any] = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "container": None,
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "mcp_servers": [],
        "betas": ["x"],
        "speed": "fast",
        "anything": [1, {"at": "all"}],
    }
    assert request(**fields) == request()


def test_a_mark_for_the_cache_is_found_anywhere() -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert not marks_cache(decoded(system=[text("a")], tools=[SEARCH]))
    assert marks_cache(decoded(**mark))
    assert marks_cache(decoded(system=[text("a", **mark)]))
    assert marks_cache(decoded(tools=[{**SEARCH, **mark}]))
    assert marks_cache(decoded(messages=[{"role": "user", "content": [text("a", **mark)]}]))
    assert conversation(decoded(system=[text("a", **mark)])) == conversation(decoded(system=[text("a")]))


_VALUES: list[Any] = [
    None,
    "",
    5,
    [],
    [5, "a", [None]],
    {"type": "text", "data": 5},
    {"type": "text", "text": "a"},
    [{"type": "text", "text": "a"}],
    [{"type": "search_result", "content": [{"text": 5}, 5]}],
    {"definition": 5, "name": []},
    {"definition": {"name": "f", "input_schema": 5}},
]
_BLOCKS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text", "tool_use", "tool_result", "thinking", "document", "search_result", "tool_addition"]
        )
    },
    optional={name: st.sampled_from(_VALUES) for name in ("content", "source", "tool", "input", "cache_control")}
    | {name: st.text(max_size=3) for name in ("text", "thinking", "id", "name", "tool_use_id", "title")},
)


@given(st.sampled_from(["user", "assistant", "system"]), st.lists(_BLOCKS, max_size=4))
def test_any_blocks_become_messages_or_a_refusal(role: str, blocks: list[dict[str, Any]]) -> None:
    try:
        found = messages({"role": role, "content": blocks})
    except RequestError:
        return
    assert all(isinstance(message["content"], str) for message in found)


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(min_size=1, max_size=5)), min_size=1)
)
def test_a_longer_conversation_begins_with_the_shorter_one(turns: list[tuple[str, str]]) -> None:
    history = [{"role": role, "content": words} for role, words in turns]
    shorter = messages(*history, ASK)
    assert messages(*history, ASK, {"role": "assistant", "content": "ok"}, ASK)[: len(shorter)] == shorter
