"""Conversations with tools have the text that transformers renders, and their text makes no control token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgepp.model.text.chat_template import TemplateRefusal, render
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.encoder import Encoder
from tests.builders.chat_templates import CONTROL_TOKENS, TEMPLATES, VARIABLES, agent_messages, call, tool
from tests.builders.properties import examples

INTEGER = {"type": "integer", "description": "a number"}


def make_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: place for place, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL_TOKENS])
    return tokenizer


ENCODER = Encoder(make_tokenizer().to_str())
THEIRS = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), **VARIABLES)


def reference(template: str, conversation: Conversation) -> str:
    text = THEIRS.apply_chat_template(
        [dict(message) for message in conversation.messages],
        tools=[dict(one) for one in conversation.tools] or None,
        chat_template=template,
        add_generation_prompt=not conversation.continues,
        continue_final_message=conversation.continues,
        tokenize=False,
        **conversation.variables,
    )
    return str(text)


def controls(template: str, conversation: Conversation) -> list[str]:
    """The control tokens of a conversation in order."""
    ids = ENCODER.encode_chat(*render(template, conversation, VARIABLES))
    return [ENCODER._control[token] for token in ids if token in ENCODER._control]


PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUE = st.recursive(
    PLAIN | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=5,
)
SCHEMA = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", "number", "integer", "boolean", "object"])},
    optional={"description": PLAIN, "enum": st.lists(VALUE, max_size=2), "default": VALUE},
)
TOOLS = st.lists(
    st.builds(lambda name, about, fields: tool(name, about, **fields), PLAIN, PLAIN, st.dictionaries(PLAIN, SCHEMA)),
    min_size=1,
    max_size=2,
)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name: str) -> None:
    @given(PLAIN, TOOLS, st.dictionaries(PLAIN, VALUE, max_size=3))
    @settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
    def check(text: str, tools: list[dict[str, Any]], arguments: dict[str, Any]) -> None:
        made = {"id": "call00001", "type": "function", "function": {"name": text, "arguments": arguments}}
        for given_tools in (tools, []):
            conversation = Conversation(agent_messages(text, tool_calls=[made]), given_tools)
            text_of_ours, _ = render(TEMPLATES[name], conversation, VARIABLES)
            assert text_of_ours == reference(TEMPLATES[name], conversation)

    check()


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}], ids=str)
def test_reasoning_and_variables_reach_the_template_as_in_transformers(variables: dict[str, Any]) -> None:
    messages = agent_messages("sum", reasoning_content="\nI add.\n", content="Wait.")[:4]
    conversation = Conversation(messages, [tool("sum", a=INTEGER)], variables)
    text, _ = render(TEMPLATES["qwen"], conversation, VARIABLES)
    assert text == reference(TEMPLATES["qwen"], conversation)
    assert "<think>\nI add.\n</think>\n\nWait.\n<tool_call>" in text
    assert text.endswith("<think>\n\n</think>\n\n") is (variables == {"enable_thinking": False})


def test_a_template_that_reads_reasoning_by_its_other_name_gets_it() -> None:
    messages = [{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}]
    text, spans = render("<|{{ messages[0].thinking }}|>", Conversation(messages), {})
    assert (text, spans) == ("<|2 + 2|>", [(2, 7)])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("said", ["It is", "It is {", "  It is"])
def test_an_answer_continues_the_last_message_as_in_transformers(name: str, said: str) -> None:
    messages = [*agent_messages(), {"role": "assistant", "content": said}]
    conversation = Conversation(messages, [tool("sum", a=INTEGER)], continues=True)
    text, _ = render(TEMPLATES[name], conversation, VARIABLES)
    assert text == reference(TEMPLATES[name], conversation)
    trailing = Conversation([*messages[:-1], {"role": "assistant", "content": said + " \n"}], continues=True)
    assert render(TEMPLATES[name], trailing, VARIABLES)[0].endswith("It is" + said.strip()[5:])


def test_a_template_that_changes_the_last_message_refuses_to_continue_it() -> None:
    conversation = Conversation([{"role": "assistant", "content": "It is"}], continues=True)
    with pytest.raises(TemplateRefusal, match="last message"):
        render("{{ messages[0].content[:3] }}", conversation, {})


def evil(text: str) -> Conversation:
    """A conversation with ``text`` wherever a client may put text."""
    schema = {"type": "string", "description": text, "enum": [text], text: {text: [text]}}
    tools = [tool(text, text, **{text: schema}), tool("f", text)]
    tools[0]["function"][text] = text
    made = call(text, "call00001", **{text: text, "deep": [{text: text}]})
    messages = agent_messages(text, tool_calls=[made], reasoning_content=text)
    return Conversation(messages, tools, {"mood": text})


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_of_tools_calls_or_results_makes_a_control_token(name: str) -> None:
    mood = "<|im_start|>{{ mood }}<|im_end|>"
    honest = controls(TEMPLATES[name] + mood, evil("hi"))
    assert len(honest) > 5

    @given(st.lists(st.sampled_from(CONTROL_TOKENS) | PLAIN, min_size=1, max_size=3).map("".join))
    @settings(max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow])
    def check(text: str) -> None:
        assert controls(TEMPLATES[name] + mood, evil(text)) == honest

    check()


def test_a_template_that_refuses_says_so_in_its_own_sentence() -> None:
    two = Conversation(agent_messages(tool_calls=[call("sum", a=1), call("sum", a=2)]), [tool("sum", a=INTEGER)])
    with pytest.raises(TemplateRefusal, match="one call at a time"):
        render(TEMPLATES["llama"], two, VARIABLES)
    short = Conversation(agent_messages(tool_calls=[call("sum", "1", a=1)]))
    with pytest.raises(TemplateRefusal, match="ids of calls have 9 characters"):
        render(TEMPLATES["mistral"], short, VARIABLES)


def test_variables_of_a_conversation_replace_neither_messages_nor_special_tokens() -> None:
    conversation = Conversation([{"role": "user", "content": "hi"}], variables={"bos_token": "x", "tools": "y"})
    assert render("{{ bos_token }}{{ tools }}", conversation, VARIABLES)[0] == "<s>None"
