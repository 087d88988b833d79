"""Answers in the shapes that models of each family write, with the calls that they mean."""

from edgepp.tool_calls.tool_use import Reasoning, Text
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answers import call

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
    # behind a prompt that ends with the role
    (
        t.HARMONY,
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
        call("get_weather", PARIS),
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
    # DeepSeek V3 and R1 with a type and a fence, V3.1 without; what comes behind the calls is text
    (
        t.DEEPSEEK,
        "I look.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Text("I look.\n"), *call("get_weather", PARIS), *call("now", "{}")],
    ),
    (
        t.DEEPSEEK_31,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>Wait.",
        [*call("get_weather", PARIS), *call("now", "{}"), Text("Wait.")],
    ),
    # a model that stops at the end of a call, before the end of all
    (
        t.DEEPSEEK_31,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        call("now", "{}"),
    ),
    # Command R, whose plan stands in front, and Command R7B
    (
        t.COMMAND_R,
        'Plan: I look.\nAction: ```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": '
        '{"city": "Paris"}\n    },\n    {\n        "tool_name": "now",\n        "parameters": {}\n    }\n]\n```',
        [Text("Plan: I look.\n"), *call("get_weather", PARIS), *call("now", "{}")],
    ),
    (t.COMMAND_R, 'Action:```json\n[{"tool_name": "now", "parameters": {}}]```', call("now", "{}")),
    (
        t.COMMAND_A,
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}},\n'
        '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        [*call("get_weather", PARIS), *call("now", "{}")],
    ),
    (
        t.INTERNLM,
        'I look.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Paris"}}<|action_end|>',
        [Text("I look."), *call("get_weather", PARIS)],
    ),
    (
        t.SEED,
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        call("get_weather", PARIS),
    ),
    # an object as the template of Seed-OSS prints those of the history
    (
        t.SEED,
        "<seed:tool_call>\n<function=get_weather>\n<parameter=days>{'a': [1, None, \"b\"]}</parameter>\n</function>\n"
        "</seed:tool_call>",
        call("get_weather", '{"days": {"a": [1, null, "b"]}}'),
    ),
    # DeepSeek V3.2 and V4, Apertus, Apriel, GigaChat 3.1
    (
        t.DEEPSEEK_32,
        'I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
        'string="true">\nParis</｜DSML｜parameter>\n<｜DSML｜parameter name="days" '
        'string="false">3</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        [Text("I look.\n\n"), *call("get_weather", '{"city": "\\nParis", "days": 3}'), *call("now", "{}")],
    ),
    (
        t.DEEPSEEK_4,
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
        call("now", "{}"),
    ),
    (
        t.APERTUS,
        'I look.<|tools_prefix|>[{"get_weather": {"city": "Paris"}}, {"now": {}}]<|tools_suffix|>',
        [Text("I look."), *call("get_weather", PARIS), *call("now", "{}")],
    ),
    (t.APRIEL, '\n<tool_calls>[{"name": "now", "arguments": {}, "id": "1"}]</tool_calls>', call("now", "{}")),
    (t.GIGACHAT, 'I look.<|function_call|>{"name": "now", "arguments": {}}', [Text("I look."), *call("now", "{}")]),
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
    (t.DEEPSEEK, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>unknown\n```json\n{}\n```"),
    (t.DEEPSEEK, "It writes <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>."),
    (t.DEEPSEEK_31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_we"),
    (t.COMMAND_R, "Action: run, then ```json\n[1]\n```"),
    (t.COMMAND_R, 'Action: ```json\n[{"tool_name": "directly_answer", "parameters": {}}]\n```'),
    (t.COMMAND_R, "Action: ```js"),
    (t.COMMAND_A, '<|START_ACTION|>[{"tool_name": "unknown", "parameters": {}}]<|END_ACTION|>'),
    (t.PLAIN, "   "),
    (t.HARMONY, " to be or not to be"),
    (t.APERTUS, '<|tools_prefix|>[{"unknown": {}}]<|tools_suffix|>'),
    (
        t.DEEPSEEK_32,
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="unknown">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    ),
]
