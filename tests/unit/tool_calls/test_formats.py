"""Answers in the shapes that models of each family write, and what the parsers make of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.tool_calls.formats import format_of
from edgepp.tool_calls.tool_use import CallArguments, CallEnded, CallStarted, Reasoning, Text, ToolUse
from tests.builders.properties import examples
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answer_cases import CASES, TEXTS
from tests.unit.tool_calls.answers import USE, call, joined, parts_of

HEADED = [t.DEEPSEEK, t.DEEPSEEK_31, t.COMMAND_R, t.COMMAND_A]


@pytest.mark.parametrize(("template", "answer", "parts"), CASES)
def test_calls_are_found_as_each_family_writes_them(template, answer, parts) -> None:
    assert parts_of(template, [answer]) == parts
    assert parts_of(template, list(answer)) == parts


@pytest.mark.parametrize(("template", "answer"), TEXTS)
def test_what_is_no_call_of_a_known_tool_stays_text(template, answer) -> None:
    assert parts_of(template, list(answer)) == [Text(answer)]
    assert parts_of(template, [answer]) == [Text(answer)]


@pytest.mark.parametrize(("template", "answer", "parts"), CASES)
def test_without_tools_or_with_choice_none_a_call_is_text(template, answer, parts) -> None:
    if template is t.HARMONY:
        return  # what its markers say is no text
    text = answer.partition("</think>\n\n")[2] or answer
    for use in (ToolUse(), ToolUse(USE.tools, "none")):
        assert [part for part in parts_of(template, list(answer), use) if isinstance(part, Text)] == [Text(text)]


def test_the_wrappers_of_an_answer_are_no_text() -> None:
    answer = "<|START_THINKING|>I know.<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>"
    for use in (USE, ToolUse()):
        for pieces in ([answer], list(answer)):
            assert parts_of(t.COMMAND_A_THINKING, pieces, use) == [Reasoning("I know."), Text("Four.")]
    calls = '<|START_ACTION|>[{"tool_name": "now", "parameters": {}}]<|END_ACTION|>'
    calling = f"<|START_THINKING|>I look.<|END_THINKING|>{calls}"
    assert parts_of(t.COMMAND_A_THINKING, list(calling)) == [Reasoning("I look."), *call("now", "{}")]


def test_arguments_are_told_as_they_come() -> None:
    begun = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Pa'
    for template in (t.DEEPSEEK, t.DEEPSEEK_R1):
        parser = format_of(template).parser(USE, "</think>")
        assert joined(parser.add(begun)) == [CallStarted("get_weather"), CallArguments('{"city": "Pa')]


@settings(max_examples=examples(300))
@given(st.data())
def test_the_parts_do_not_depend_on_how_the_text_is_cut(data) -> None:
    fragments = [answer for _, answer, _ in CASES] + [text for _, text in TEXTS]
    template = data.draw(
        st.sampled_from([t.LLAMA, t.QWEN, t.MISTRAL, t.PLAIN, t.QWEN_CODER, t.LFM, t.KIMI_K2, t.HARMONY, *HEADED])
    )
    answer = "".join(data.draw(st.lists(st.sampled_from([*fragments, "\n", " ", "{", "[", '"', "<", ";"]), max_size=4)))
    answer = answer[: data.draw(st.integers(0, len(answer)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert parts_of(template, pieces) == parts_of(template, [answer]) == parts_of(template, list(answer))


@settings(max_examples=examples(200))
@given(st.text(alphabet='{}[]"\\:,;<>|()= \nabcntgew_hr1', max_size=80), st.sampled_from([t.LLAMA, t.QWEN, t.MISTRAL]))
def test_any_text_gives_whole_calls_or_itself(answer, template) -> None:
    parts = parts_of(template, list(answer))
    if not any(isinstance(part, CallStarted) for part in parts):
        assert "".join(part.text for part in parts if isinstance(part, Text | Reasoning)) == answer
    for number, part in enumerate(parts):
        if isinstance(part, CallEnded):
            assert isinstance(json.loads(parts[number - 1].text), dict)


def test_arguments_come_as_the_model_writes_them() -> None:
    parser = format_of(t.LLAMA).parser(USE)
    assert parser.add('{"name": "get_weather", ') == []
    assert parser.add('"parameters": {"ci') == [CallStarted("get_weather"), CallArguments('{"ci')]
    assert parser.add('ty": "Par') == [CallArguments('ty": "Par')]
    assert parser.add('is"}') == [CallArguments('is"}'), CallEnded()]
    assert parser.add("}") == []
    assert parser.finish() == []


def test_false_beginnings_are_text_at_once() -> None:
    parser = format_of(t.LLAMA).parser(USE)
    assert joined(parser.add('{"temperature": ')) == [Text('{"temperature": ')]
    assert parser.add("20}") == [Text("20}")]


def test_half_a_call_has_no_end() -> None:
    parts = parts_of(t.QWEN, ['<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa'])
    assert parts == [CallStarted("get_weather"), CallArguments('{"city": "Pa')]


def test_arguments_that_are_not_json_are_an_error_that_names_the_tool() -> None:
    answer = '{"name": "get_weather", "parameters": {city: 1}} and more'
    expected = [
        CallStarted("get_weather"),
        CallArguments("{"),
        "the model wrote a call of get_weather whose arguments are not JSON: a key is a string",
    ]
    assert parts_of(t.LLAMA, [answer[:43], answer[43:]]) == expected
    assert parts_of(t.LLAMA, list(answer)) == expected


def test_a_marker_behind_arguments_that_are_not_json_does_not_hide_the_error() -> None:
    answer = "<|channel|>commentary to=functions.now<|message|>none<|call|>"
    expected = [
        CallStarted("now"),
        "the model wrote a call of now whose arguments are not JSON: an object begins with {",
    ]
    for size in (1, 3, 7, len(answer)):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert parts_of(t.HARMONY, pieces) == expected


def test_only_the_named_tool_is_called() -> None:
    use = ToolUse(USE.tools, "required", named="now")
    answer = '{"name": "get_weather", "parameters": {}}'
    assert parts_of(t.LLAMA, [answer], use) == [Text(answer)]


def test_a_long_answer_full_of_beginnings_takes_linear_work() -> None:
    # a quadratic parser would need hours, and the test's time limit would end it
    for template, beginning in (
        (t.LLAMA, '\n{"name": "get_weather", "id": "'),
        (t.LLAMA, '\n{"arguments": '),
        (t.LLAMA, "\n{"),
        (t.QWEN, "<tool_call>"),
        (t.QWEN, "<tool_call"),
        (t.QWEN_CODER, "<tool_call>\n<function="),
        (t.GLM, "<tool_call>\n<arg_key>"),
    ):
        answer = beginning * 3_000
        pieces = [answer[at : at + 7] for at in range(0, len(answer), 7)]
        assert parts_of(template, pieces) == [Text(answer)] == parts_of(template, [answer])


def test_a_tool_call_may_hold_a_whole_file() -> None:
    content = json.dumps({"city": "x = {}\n" * 20_000})
    answer = '{"name": "get_weather", "parameters": ' + content + "}"
    assert parts_of(t.LLAMA, [answer[at : at + 5] for at in range(0, len(answer), 5)]) == call("get_weather", content)
