"""What a grammar promises: whoever samples, calls are of the tools, and their arguments match the schemas."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgepp.engine.request import Constraint
from edgepp.tool_calls.formats import format_of
from edgepp.tool_calls.tool_use import CallArguments, CallEnded, CallStarted, Text, Tool, ToolUse
from tests.builders.properties import examples
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answers import NOW, WEATHER, joined
from tests.unit.tool_calls.grammars import bounded_tool_schema, is_allowed, random_answer, special_tokens

TEMPLATES = [
    t.LLAMA, t.QWEN, t.MISTRAL, t.MISTRAL_ARGS, t.PLAIN, t.QWEN_CODER, t.GLM, t.LFM, t.KIMI_K2, t.MINIMAX, t.GEMMA_4,
    t.FUNCTION_GEMMA, t.MINICPM, t.LONGCAT, t.MUSE, t.PHI, t.GRANITE, t.NEMOTRON, t.JAMBA,
    t.DEEPSEEK, t.DEEPSEEK_31, t.COMMAND_R, t.COMMAND_A, t.INTERNLM, t.SEED,
    t.GLM_LINES, t.DEEPSEEK_32, t.DEEPSEEK_4, t.APERTUS, t.GIGACHAT,
]  # fmt: skip
BOUNDED = Tool("look", "Looks.", bounded_tool_schema())
STRICT = replace(WEATHER, strict=True)


CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""The end of a prompt by which a model is not to reason: random tokens would never end it."""


def constraint(template: str, use: ToolUse, prompt_end: str = "", answer: Constraint | None = None):
    return format_of(template, special_tokens(template)).constraint(use, prompt_end, answer)


def parts(template: str, use: ToolUse, answer: str):
    parser = format_of(template, special_tokens(template)).parser(use)
    return joined([*parser.add(answer), *parser.finish()])


def check_calls(template: str, use: ToolUse, answer: str) -> int:
    """Check that ``answer`` is calls of ``look`` by its schema, and text; the number of calls."""
    found = parts(template, use, answer)
    assert found.count(CallEnded()) == sum(isinstance(part, CallStarted) for part in found)
    for part in found:
        if isinstance(part, CallStarted):
            assert part.name in {tool.name for tool in use.tools}
        if isinstance(part, CallArguments):
            arguments = json.loads(part.text)
            assert arguments.keys() >= {"unit", "place"}
            assert arguments["place"].keys() == {"kind", "near"}
            assert arguments.get("days", 1) in range(1, 15)
    return found.count(CallEnded())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
def test_random_tokens_give_valid_calls_where_a_call_is_required(template, parallel) -> None:
    use = ToolUse((BOUNDED,), "required", parallel=parallel)
    held = constraint(template, use, CLOSED)
    for seed in range(examples(20)):
        answer = random_answer(held, seed, limit=20_000)
        calls = check_calls(template, use, answer)
        assert calls == 1 if not parallel else calls >= 1
        assert not any(isinstance(part, Text) for part in parts(template, use, answer)), answer


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_named_tool_alone_is_called_once(template) -> None:
    use = ToolUse((replace(BOUNDED, name="other"), BOUNDED), "required", named="look")
    for seed in range(4):
        found = parts(template, use, random_answer(constraint(template, use, CLOSED), seed))
        assert [part.name for part in found if isinstance(part, CallStarted)] == ["look"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_strict_allows_text_or_valid_calls(template) -> None:
    use = ToolUse((STRICT, NOW))
    held = constraint(template, use)
    for text in ("Hello {world} [1]!", '{"answer": 42}', "A list:\n- [x](y)\n", ""):
        assert is_allowed(held, text), text
    for form in ('{"name": "get_weather", "parameters": ', '<tool_call>\n{"name": "get_weather", "arguments": '):
        found = parts(template, use, form)
        for arguments in ('{"town": 1}', '{"city": 1}', "{}"):
            if not any(isinstance(part, Text) for part in found):
                assert not is_allowed(held, form + arguments + "}\n</tool_call>")
                assert not is_allowed(held, form + arguments + "}")


def test_llama_may_call_with_and_without_its_tag() -> None:
    held = constraint(t.LLAMA, ToolUse((STRICT, NOW)))
    call = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
    assert is_allowed(held, call)
    assert is_allowed(held, f"<|python_tag|>{call}")
    assert is_allowed(held, f'{call}; {{"name": "now", "parameters": {{}}}}')
    assert not is_allowed(held, '{"name": "get_weather", "parameters": {"city": 1}}')
    assert not is_allowed(held, '[get_weather(city="Paris")]')


def test_qwen_may_write_text_in_front_of_valid_calls() -> None:
    held = constraint(t.QWEN, ToolUse((STRICT, NOW)))
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert is_allowed(held, f"I look.\n{call}\n{call}")
    assert is_allowed(held, f"<think>\nHm <tool_call>.\n</think>\n\n{call}")
    assert not is_allowed(held, f"{call[:-30]}1}}\n</tool_call>")
    assert not is_allowed(held, 'Text <tool_call>\n{"name": "get_weather", "arguments": {"city": 1}}\n</tool_call>')


def test_without_parallel_calls_there_is_at_most_one() -> None:
    use = ToolUse((WEATHER, NOW), parallel=False)
    for template, marker in ((t.QWEN, "<tool_call>"), (t.LLAMA, ""), (t.MISTRAL_ARGS, "[TOOL_CALLS]")):
        one = random_answer(constraint(template, ToolUse((BOUNDED,), "required", parallel=False), CLOSED), 3)
        held = constraint(template, replace(use, tools=(BOUNDED, NOW)))
        assert is_allowed(held, one), one
        assert not is_allowed(held, f"{one}\n{one}")
        assert not is_allowed(held, f"{one}; {one}")
        assert marker in one


def test_auto_without_strict_is_free_where_the_template_knows_tools() -> None:
    for template in TEMPLATES:
        free = constraint(template, ToolUse((WEATHER,)))
        assert (free is None) == (template is not t.PLAIN)
    assert constraint(t.PLAIN, ToolUse()) is None
    assert constraint(t.PLAIN, ToolUse((WEATHER,), "none")) is None


def test_a_template_without_tools_gives_text_or_well_formed_calls() -> None:
    held = constraint(t.PLAIN, ToolUse((WEATHER, NOW)))
    assert is_allowed(held, "Just text, with a < b.")
    assert is_allowed(held, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not is_allowed(held, '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>')
    assert not is_allowed(held, "<tool_call>\nwhatever")


@pytest.mark.parametrize("opened", [True, False])
def test_reasoning_stays_free_in_front_of_a_required_call(opened) -> None:
    use = ToolUse((NOW,), "required")
    held = constraint(t.THINKING, use, "<|Assistant|><think>\n" if opened else "")
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert is_allowed(held, ("" if opened else "<think>\n") + f"Which tool? {{x}}\n</think>\n\n{call}")
    assert is_allowed(held, call) is not opened
    assert not is_allowed(held, f"Hello {call}")


def test_text_may_not_spell_the_marker_of_calls() -> None:
    """What a parser would take for a call is held to the schemas, whichever tokens spell it."""
    marker = {"[TOOL_CALLS]": 300, "<|python_tag|>": 301}  # ids of tokens that the tokenizer does not have
    for template, wrong in (
        (t.MISTRAL_ARGS, '[TOOL_CALLS]get_weather[ARGS]{"town": 1}'),
        (t.LLAMA, '<|python_tag|>{"name": "get_weather", "parameters": {"town": 1}}'),
        (t.LLAMA, 'Text <function=get_weather>{"town": 1}</function>'),
    ):
        held = format_of(template, marker).constraint(ToolUse((STRICT,)))
        spelled = held.text.replace("<[300]>", "<[257]>").replace("<[301]>", "<[257]>")
        assert not is_allowed(Constraint("grammar", spelled), wrong, spell=True)
        assert is_allowed(Constraint("grammar", spelled), "Text <tool", spell=True)


def test_channels_hold_reasoning_text_and_calls() -> None:
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
    thoughts = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    required = constraint(t.HARMONY, ToolUse((STRICT,), "required"))
    assert is_allowed(required, call)
    assert is_allowed(required, thoughts + call)
    assert not is_allowed(required, "<|channel|>final<|message|>Hello")
    strict = constraint(t.HARMONY, ToolUse((STRICT,)))
    assert is_allowed(strict, thoughts + "<|channel|>final<|message|>Hello")
    assert not is_allowed(strict, call.replace("city", "town"))
    schema = constraint(t.HARMONY, ToolUse(), answer=Constraint("json"))
    assert is_allowed(schema, thoughts + '<|channel|>final<|message|>{"a": 1}')
    assert not is_allowed(schema, '{"a": 1}')
    found = parts(t.HARMONY, ToolUse((STRICT,)), thoughts + call)
    assert [type(part).__name__ for part in found] == ["Reasoning", "CallStarted", "CallArguments", "CallEnded"]


@pytest.mark.parametrize("template", [t.LLAMA, t.QWEN, t.PLAIN])
def test_the_beginning_of_a_held_call_is_no_text_when_the_answer_is_cut(template) -> None:
    use = ToolUse((BOUNDED,), "required")
    whole = random_answer(constraint(template, use, CLOSED), 0)
    for end in range(len(whole)):
        assert not any(isinstance(part, Text) for part in parts(template, use, whole[:end]))


def test_tags_hold_strings_as_they_are_and_other_values_as_json() -> None:
    held = constraint(t.QWEN_CODER, ToolUse((STRICT, NOW)))
    call = (
        '<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\nYork, "the" city\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    )
    assert is_allowed(held, f"I look.\n{call}\n{call}")
    assert not is_allowed(held, call.replace("\n3\n", "\nthree\n"))
    assert not is_allowed(held, call.replace("city>", "town>"))
    assert not is_allowed(held, call.replace('<parameter=city>\nNew\nYork, "the" city\n</parameter>\n', ""))
    assert is_allowed(held, '<tool_call>{"name": "now", "arguments": {}}</tool_call>')
    union = Tool("union", parameters={"properties": {"a": {"type": ["string", "integer"]}}, "required": ["a"]})
    as_json = '<tool_call>{"name": "union", "arguments": {"a": "x"}}</tool_call>'
    assert is_allowed(constraint(t.QWEN_CODER, ToolUse((union,), "required", named="union"), CLOSED), as_json)


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (t.GLM, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>"),
        (t.GLM_LINES, "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>"),
        (t.GLM, "<tool_call>stop</tool_call>"),
        (t.QWEN_CODER, "<tool_call>\n<function=stop>\n</function>\n</tool_call>"),
        (
            t.KIMI_K2,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.stop:0<|tool_call_argument_begin|>{}"
            "<|tool_call_end|><|tool_calls_section_end|>",
        ),
        (
            t.COMMAND_A,
            '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "stop", "parameters": {}}\n]<|END_ACTION|>',
        ),
        (
            t.COMMAND_R,
            'Action:\n```json\n[\n    {\n        "tool_name": "stop",\n        "parameters": {}\n    }\n]```',
        ),
        (t.APRIEL, '<tool_calls>[{"name": "stop", "arguments": {}}]</tool_calls>'),
        (t.APERTUS, '<|tools_prefix|>[{"get_weather": {"city": "Oslo"}}, {"stop": {}}]<|tools_suffix|>'),
        (
            t.DEEPSEEK_32,
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
            'string="true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">'
            "3</｜DSML｜parameter>\n"
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        ),
    ],
)
def test_a_grammar_admits_calls_as_the_template_writes_them(template, answer) -> None:
    stop = Tool("stop", parameters={"type": "object", "properties": {}})
    assert is_allowed(constraint(template, ToolUse((WEATHER, stop), "required"), CLOSED), answer)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_required_call_is_read_whatever_name_a_tool_may_have(template) -> None:
    for name in ("github:issues/search", "a.b-c_d", "x1" * 64):
        use = ToolUse((replace(BOUNDED, name=name),), "required", parallel=False)
        found = parts(template, use, random_answer(constraint(template, use, CLOSED), 1))
        assert [part.name for part in found if type(part).__name__ == "CallStarted"] == [name]
        assert type(found[-1]).__name__ == "CallEnded"
