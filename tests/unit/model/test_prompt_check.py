"""A prompt is refused by the name of the field that cannot be used."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import UsageError
from edgepp.model.text import prompt_check
from edgepp.model.text.conversation import Conversation, Prompt
from edgepp.model.text.prompt_check import MAX_DEPTH, MAX_MESSAGES, MAX_TOOLS, check_prompt
from tests.builders.chat_templates import agent_messages, call, tool

HI = {"role": "user", "content": "hi"}


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def of_call(**function: Any) -> Conversation:
    return Conversation([{"role": "assistant", "content": None, "tool_calls": [{"function": function}]}])


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "hé",
        (0, 5),
        Conversation.of(""),
        Conversation(agent_messages(), [tool("sum", a={"type": "integer"})], {"enable_thinking": False}),
        Conversation(tuple(agent_messages()), variables={"date_string": "1 May 2026", "deep": nested(MAX_DEPTH - 1)}),
        Conversation([{"role": "assistant", "content": "", "tool_calls": [call("f"), call("f")]}]),
        Conversation([{"role": "assistant", "reasoning_content": "hm"}, {"role": "tool", "content": "", "name": None}]),
        Conversation([HI, {"role": "assistant", "content": "It"}], continues=True),
    ],
    ids=repr,
)
def test_what_a_prompt_may_be(prompt: Prompt) -> None:
    check_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a\ud800", "character 2 of the text is half of a surrogate pair"),
        ((), "the prompt is empty"),
        ((1, "2"), "whole numbers only, not '2'"),
        ((True,), "whole numbers only, not True"),
        (Conversation([]), "the conversation is empty"),
        (Conversation("hi"), "messages must be a list"),
        (Conversation([HI] * (MAX_MESSAGES + 1)), f"may have {MAX_MESSAGES} messages"),
        (Conversation([HI], [tool("f")] * (MAX_TOOLS + 1)), f"may have {MAX_TOOLS} tools"),
        (Conversation(["hi"]), r"messages\[0\] must be an object"),
        (Conversation([HI, {"content": "x"}]), r"messages\[1\] has no role"),
        (Conversation([{"role": "user"}]), r"messages\[0\] has no content"),
        (Conversation([{"role": "user", "content": [{"type": "text"}]}]), r"messages\[0\].content must be text"),
        (Conversation([HI | {"images": []}]), r"messages\[0\] has a field 'images'"),
        (Conversation([HI | {"name": 3}]), r"messages\[0\].name must be text, not 3"),
        (Conversation([HI | {"name": "\udfff"}]), r"messages\[0\].name: character 1"),
        (Conversation([HI | {"tool_calls": "f()"}]), r"messages\[0\].tool_calls must be a list"),
        (Conversation([HI | {"tool_calls": ["f()"]}]), r"messages\[0\].tool_calls\[0\] must be an object"),
        (of_call(name="f"), "must have a name, which is text, and arguments"),
        (of_call(name=3, arguments={}), "must have a name, which is text, and arguments"),
        (of_call(name="f", arguments="{}"), "arguments must be an object, not '{}'"),
        (of_call(name="f", arguments={"a": nested(MAX_DEPTH)}), f"more than {MAX_DEPTH} levels"),
        (of_call(name="f", arguments={"a": float("inf")}), "holds inf, which is no value of JSON"),
        (of_call(name="f", arguments={"a": 1 << 2000}), "which is no value of JSON"),
        (of_call(name="f", arguments={1: 2}), "which is no value of JSON"),
        (Conversation([HI], [{"name": "f"}]), r"tools\[0\] must be an object with a function"),
        (Conversation([HI], [{"function": {"name": "f", "parameters": "x"}}]), r"tools\[0\].function.parameters"),
        (Conversation([HI], [tool("f", a={"enum": ["\ud800"]})]), r"tools\[0\]: character 1"),
        (Conversation([HI], variables=[1]), "variables of a template must be an object"),  # type: ignore[arg-type]
        (Conversation([HI], variables={"messages": []}), "cannot be given a variable 'messages'"),
        (Conversation([HI], variables={"__class__": 1}), "cannot be given a variable '__class__'"),
        (Conversation([HI], continues=True), "can only continue text of an assistant"),
        (Conversation([HI, {"role": "assistant", "content": ""}], continues=True), "can only continue text"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_what_a_prompt_may_not_be(prompt: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_prompt(prompt)


def test_all_text_of_a_conversation_counts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_check, "MAX_PROMPT_BYTES", 2000)
    check_prompt("a" * 2000)
    check_prompt(Conversation.of("é" * 900))
    for prompt in (
        "é" * 1001,
        Conversation.of("é" * 1001),
        Conversation([HI | {"content": "a" * 1200}], [tool("f", "a" * 1200)]),
        Conversation([HI | {"content": "a" * 1200}], variables={"a": "a" * 1200}),
        of_call(name="f", arguments={"a": [0] * 300}),
    ):
        with pytest.raises(UsageError, match="may have 2000 bytes"):
            check_prompt(prompt)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON, JSON)
def test_any_junk_is_taken_or_refused(messages: Any, tools: Any, variables: Any) -> None:
    with suppress(UsageError):
        check_prompt(Conversation(messages, tools, variables))
