"""Answers in the shapes that models of each family write, and what the parsers make of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.tool_calls.formats import format_of
from edgepp.tool_calls.tool_use import CallArguments, CallEnded, CallStarted, Reasoning, Text, ToolUse
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answers import USE, call, joined, parts_of

PARIS = '{"city": "Paris"}'
CASES = [
    # Llama 3.1 8B, 70B and 3.3 70B: bare JSON, the tag of the interpreter, built-in tools, lists by semicolon
    (t.LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}', call("get_weather", PARIS)),
    (
        t.LLAMA,
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}',
        call("get_weather", PARIS),
    ),
    (
        t.LLAMA,
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}',
        [*call("get_weather", PARIS), *call("now", "{}")],
    ),
    (
        t.LLAMA,
        '<|python_tag|>brave_search.call(query="a \\"b\\"")<|eom_id|>',
        call("brave_search", '{"query": "a \\"b\\""}'),
    ),
    (t.LLAMA, '<function=get_weather>{"city": "Paris"}</function>', call("get_weather", PARIS)),
    # Llama 3.2 1B and 3B: other keys, other orders, missing braces, prose in front, lists like Python
    (t.LLAMA, '{"type": "function", "function": "now", "parameters": null}', call("now", "{}")),
    (t.LLAMA, '{"function": {"name": "now", "arguments": {}}}', call("now", "{}")),
    (t.LLAMA, '{"parameters": {"city": "Paris"}, "name": "get_weather"}', call("get_weather", PARIS)),
    (t.LLAMA, '{"name": "get_weather", "parameters": "{\\"city\\": \\"Paris\\"}"}', call("get_weather", PARIS)),
    (t.LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}', call("get_weather", PARIS)),
    (t.LLAMA, '{"name": "get_weather", "parameters": {"city": None}}', call("get_weather", '{"city": null}')),
    (t.LLAMA, '{"name": "get_weather", "parameters": {"city": "a\nb"}}', call("get_weather", '{"city": "a\\nb"}')),
    (
        t.LLAMA,
        'Let me look.\n\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n\nDone.',
        [Text("Let me look.\n\n"), *call("get_weather", PARIS), Text("Done.")],
    ),
    (
        t.LLAMA,
        "[get_weather(city='Paris', days=2), now()]",
        [*call("get_weather", '{"city": "Paris", "days": 2}'), *call("now", "{}")],
    ),
    (
        t.LLAMA,
        '[{"name": "now", "parameters": {}}, {"name": "get_weather", "arguments": {"city": "Paris"}}]',
        [*call("now", "{}"), *call("get_weather", PARIS)],
    ),
    # Qwen 2.5 and 3, Hermes 2 and 3
    (
        t.QWEN,
        'Yes.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        [Text("Yes.\n"), *call("get_weather", PARIS), *call("now", "{}")],
    ),
    (
        t.QWEN,
        '<think>\nWhich?\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        [Reasoning("Which?"), *call("now", "{}")],
    ),
    (
        t.QWEN,
        '<tool_call>\n{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>',
        call("get_weather", PARIS),
    ),
    (t.QWEN, '<tool_call>\n{"name": "now", "arguments": {}}', call("now", "{}")),
    # Mistral 7B v0.3 and Nemo; Mistral Small 3.2, Devstral, Magistral
    (
        t.MISTRAL,
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "Ab3dE5gH9"}, '
        '{"name": "now", "arguments": {}}]',
        [*call("get_weather", PARIS), *call("now", "{}")],
    ),
    (
        t.MISTRAL_ARGS,
        'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}',
        [Text("Sure."), *call("get_weather", PARIS), *call("now", "{}")],
    ),
    (t.MISTRAL_ARGS, '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}', call("get_weather", PARIS)),
    # lists of JSON between markers: Phi 4 mini, Granite 3, Nemotron, Jamba
    (t.PHI, '<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>', call("now", "{}")),
    (t.GRANITE, '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]', call("get_weather", PARIS)),
    (t.NEMOTRON, '<TOOLCALL>[{"name": "now", "arguments": {}}]</TOOLCALL>\n', call("now", "{}")),
    (t.JAMBA, '<tool_calls>[\n  {"name": "now", "arguments": {}}\n]</tool_calls>', call("now", "{}")),
    # gpt-oss
    (
        t.HARMONY,
        "<|channel|>analysis<|message|>Which city?<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}',
        [Reasoning("Which city?"), *call("get_weather", PARIS)],
    ),
    (
        t.HARMONY,
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.now<|channel|>commentary json"
        "<|message|>{}<|call|>",
        [Text("I look."), *call("now", "{}")],
    ),
    # templates without tools, by edgepp's own prompt
    (t.PLAIN, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', call("now", "{}")),
    (t.PLAIN, '{"name": "now", "arguments": {}}', call("now", "{}")),
    # the families whose parsers mlx-lm has
    (
        t.QWEN_CODER,
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nPa\nris\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        [Text("I look.\n"), *call("get_weather", '{"city": "Pa\\nris", "days": 3}')],
    ),
    (
        t.GLM,
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>75</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        call("get_weather", '{"city": "75", "days": 3}'),
    ),
    (
        t.LFM,
        '<|tool_call_start|>[get_weather(city="Paris"), now()]<|tool_call_end|>Wait.',
        [*call("get_weather", PARIS), *call("now", "{}"), Text("Wait.")],
    ),
    (
        t.KIMI_K2,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        [*call("get_weather", PARIS), *call("now", "{}")],
    ),
    (
        t.MINIMAX,
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
        '<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        [*call("get_weather", PARIS), *call("now", "{}")],
    ),
    (
        t.GEMMA_4,
        '<|tool_call>call:get_weather{city:<|"|>{Pa}, ris<|"|>,days:2}<tool_call|>',
        call("get_weather", '{"city": "{Pa}, ris", "days": 2}'),
    ),
    (
        t.FUNCTION_GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>",
        call("get_weather", PARIS),
    ),
    (
        t.MINICPM,
        '<function name="get_weather"><param name="city"><![CDATA[a<b]]></param></function>',
        call("get_weather", '{"city": "a<b"}'),
    ),
    (
        t.LONGCAT,
        "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n"
        "<longcat_arg_value>Paris</longcat_arg_value>\n</longcat_tool_call>",
        call("get_weather", PARIS),
    ),
    (
        t.MUSE,
        '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="city">Paris</atem:parameter>\n'
        "</atem:invoke>\n</atem:function_calls>",
        call("get_weather", PARIS),
    ),
]
TEXTS = [
    (t.LLAMA, '{"city": "Paris"}'),
    (t.LLAMA, '{"name": "Bob", "age": 3}'),
    (t.LLAMA, '{"name": "unknown_tool", "parameters": {}}'),
    (t.LLAMA, "[1, 2]"),
    (t.LLAMA, "[a link](https://example.com)"),
    (t.LLAMA, '<|python_tag|>print("hello")'),
    (t.LLAMA, '{"na'),
    (t.LLAMA, '{"name": "get_weather'),
    (t.LLAMA, "if x {\n  y();\n}\n<function=unknown>{}</function>"),
    (t.LLAMA, "[get_weather(city=open('x'))]"),
    (t.QWEN, 'Write <tool_call>\n{"name": "unknown_tool", "arguments": {}}\n</tool_call> to call.'),
    (t.QWEN, "a < b and <tool and <tool_call> and more"),
    (t.QWEN, '<tool_call>\n{"name": "get_w'),
    (t.QWEN, "Text that mentions </think> and <think>."),
    (t.MISTRAL, '[TOOL_CALLS]unknown[ARGS]{"a": 1}'),
    (t.QWEN_CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\nrm -r /x"),
    (t.HARMONY, "No channel at all, with <|an odd| word."),
    (t.GLM, "<tool_call>unknown\n<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"),
    (t.PLAIN, "\n\n  spaced \n\n"),
    (t.PLAIN, "   "),
]


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


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_parts_do_not_depend_on_how_the_text_is_cut(data) -> None:
    fragments = [answer for _, answer, _ in CASES] + [text for _, text in TEXTS]
    template = data.draw(
        st.sampled_from([t.LLAMA, t.QWEN, t.MISTRAL, t.PLAIN, t.QWEN_CODER, t.LFM, t.KIMI_K2, t.HARMONY])
    )
    answer = "".join(data.draw(st.lists(st.sampled_from([*fragments, "\n", " ", "{", "[", '"', "<", ";"]), max_size=4)))
    answer = answer[: data.draw(st.integers(0, len(answer)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert parts_of(template, pieces) == parts_of(template, [answer]) == parts_of(template, list(answer))


@settings(max_examples=200, deadline=None)
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
