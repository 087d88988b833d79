"""The families of models by the way that they write calls, each recognised by the text of its chat template."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from edgepp.tool_calls import gemma_calls, kimi_calls, tagged_calls
from edgepp.tool_calls.family import Family, Parse, WrittenCall
from edgepp.tool_calls.fenced_calls import Heads
from edgepp.tool_calls.json_calls import named_objects
from edgepp.tool_calls.tagged_grammar import WrittenTags

_MISTRAL = re.compile(r"\s*([\w.:/-]+)(?:\[CALL_ID\][^\[\]{}]*)?(?:\[ARGS\])?\s*(?=\{)")
_JSON = '{"name": "{name}", "arguments": {arguments}}'
HERMES = Family(
    "hermes", WrittenCall(f"<tool_call>\n{_JSON}\n</tool_call>", between="\n"), "<tool_call>", "</tool_call>"
)
GENERIC = Family("generic", HERMES.written, HERMES.marker, HERMES.closing, bare=True, takes_several=False)
LLAMA = Family(
    "llama",
    WrittenCall('{"name": "{name}", "parameters": {arguments}}', between="; "),
    "<|python_tag|>",
    "<|eom_id|>",
    bare=True,
    function_tags=True,
)
MISTRAL = Family("mistral", WrittenCall(_JSON, "[TOOL_CALLS][", ", ", "]"), "[TOOL_CALLS]", named=_MISTRAL)
MISTRAL_ARGS = Family("mistral", WrittenCall("[TOOL_CALLS]{name}[ARGS]{arguments}"), "[TOOL_CALLS]", named=_MISTRAL)
PYTHONIC = Family(
    "pythonic",
    WrittenCall(_JSON, "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
    "<|tool_call_start|>",
    "<|tool_call_end|>",
)
HARMONY = Family(
    "harmony",
    WrittenCall("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"),
    takes_several=False,
)
_PHI = Family("phi", WrittenCall(_JSON, "<|tool_call|>[", ", ", "]<|/tool_call|>"), "<|tool_call|>", "<|/tool_call|>")
_GRANITE = Family("granite", WrittenCall(_JSON, "<|tool_call|>[", ", ", "]"), "<|tool_call|>")
_NEMOTRON = Family("nemotron", WrittenCall(_JSON, "<TOOLCALL>[", ", ", "]</TOOLCALL>"), "<TOOLCALL>", "</TOOLCALL>")
_JAMBA = Family(
    "jamba", WrittenCall(_JSON, "<tool_calls>[\n", ",\n", "\n]</tool_calls>"), "<tool_calls>", "</tool_calls>"
)
_APRIEL = Family(
    "apriel",
    WrittenCall(_JSON, "<tool_calls>[", ", ", "]</tool_calls>"),
    "<tool_calls>",
    "</tool_calls>",
    wrappers=("[END FINAL RESPONSE]",),
)
_GIGACHAT = Family("gigachat", WrittenCall("<|function_call|>" + _JSON), "<|function_call|>", takes_several=False)
_APERTUS = Family(
    "apertus",
    WrittenCall('{"{name}": {arguments}}', "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
    "<|tools_prefix|>",
    "<|tools_suffix|>",
    parse=lambda text, _: named_objects(text),
    holds_json_calls=False,
)
_INTERNLM = Family(
    "internlm",
    WrittenCall('<|action_start|><|plugin|>{"name": "{name}", "parameters": {arguments}}<|action_end|>'),
    "<|action_start|><|plugin|>",
    "<|action_end|>",
    takes_several=False,
)
_CALLED = '{"tool_name": "{name}", "parameters": {arguments}}'
_COMMAND_R = Family(
    "command_r",
    WrittenCall(
        '    {\n        "tool_name": "{name}",\n        "parameters": {arguments}\n    }',
        "Action:\n```json\n[\n",
        ",\n",
        "\n]```",
    ),
    "Action:",
    is_fenced=True,
)
_COMMAND_A = Family(
    "command_a",
    WrittenCall('    {"tool_call_id": "0", ' + _CALLED[1:], "<|START_ACTION|>[\n", ",\n", "\n]<|END_ACTION|>"),
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    wrappers=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END, _SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_DEEPSEEK_HEADS = Heads(
    re.compile(
        rf"\s*(?:```)?\s*(?:{_CALL_END})?\s*{_CALL_BEGIN}\s*(?:function{_SEP})?\s*([\w.:/-]+)\s*(?:{_SEP})?\s*(?:```json)?\s*"
    ),
    re.compile(rf"\s*(?:```)?\s*(?:{_CALL_END})?\s*"),
)
_DEEPSEEK_R1 = Family(
    "deepseek",
    WrittenCall(
        f"{_CALL_BEGIN}function{_SEP}{{name}}\n```json\n{{arguments}}\n```{_CALL_END}", _CALLS_BEGIN, "\n", _CALLS_END
    ),
    _CALLS_BEGIN,
    _CALLS_END,
    headed=_DEEPSEEK_HEADS,
)
_DEEPSEEK = Family(
    "deepseek",
    WrittenCall(f"{_CALL_BEGIN}{{name}}{_SEP}{{arguments}}{_CALL_END}", _CALLS_BEGIN, "", _CALLS_END),
    _CALLS_BEGIN,
    _CALLS_END,
    headed=_DEEPSEEK_HEADS,
)


def _whole(name: str, marker: str, closing: str, parse: Parse, tags: WrittenTags | None = None) -> Family:
    """A family with calls between markers, which a grammar writes with tags, or as JSON between the same markers."""
    return Family(name, WrittenCall(marker + _JSON + closing, between="\n"), marker, closing, parse, tags=tags)


_QWEN_CODER = _whole(
    "qwen_coder",
    "<tool_call>",
    "</tool_call>",
    tagged_calls.QWEN_CODER.parse,
    WrittenTags(
        "<tool_call>\n<function={name}>\n", "<parameter={key}>\n", "\n</parameter>\n", "</function>\n</tool_call>"
    ),
)
_SEED = _whole(
    "seed",
    "<seed:tool_call>",
    "</seed:tool_call>",
    tagged_calls.QWEN_CODER.parse,
    WrittenTags(
        "<seed:tool_call>\n<function={name}>\n",
        "<parameter={key}>",
        "</parameter>\n",
        "</function>\n</seed:tool_call>",
    ),
)
_GLM = _whole(
    "glm",
    "<tool_call>",
    "</tool_call>",
    tagged_calls.GLM.parse,
    WrittenTags("<tool_call>{name}\n", "<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>"),
)
_GLM_ONE_LINE = replace(
    _GLM, tags=WrittenTags("<tool_call>{name}", "<arg_key>{key}</arg_key><arg_value>", "</arg_value>", "</tool_call>")
)
_LONGCAT = _whole("longcat", "<longcat_tool_call>", "</longcat_tool_call>", tagged_calls.LONGCAT.parse)
_MINIMAX = _whole(
    "minimax",
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    tagged_calls.MINIMAX.parse,
    WrittenTags(
        '<minimax:tool_call>\n<invoke name="{name}">\n',
        '<parameter name="{key}">',
        "</parameter>\n",
        "</invoke>\n</minimax:tool_call>",
    ),
)
_MINICPM = _whole("minicpm", "<function name=", "</function>", tagged_calls.MINICPM.parse)
_MUSE = _whole("muse", "<atem:function_calls>", "</atem:function_calls>", tagged_calls.MUSE.parse)
_KIMI_K3 = _whole("kimi_k3", "<|open|>tools<|sep|>", "<|close|>tools<|sep|>", tagged_calls.KIMI_K3.parse)
_KIMI_K2 = Family(
    "kimi_k2",
    WrittenCall(
        "<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "",
        "<|tool_calls_section_end|>",
    ),
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    parse=lambda text, _: kimi_calls.parse(text),
)


def _dsml(calls: str) -> Family:
    """DeepSeek V3.2 and V4, whose tags differ in the name of the outer one."""
    begin, end = f"<｜DSML｜{calls}>", f"</｜DSML｜{calls}>"
    tags = WrittenTags(
        f'{begin}\n<｜DSML｜invoke name="{{name}}">\n',
        '<｜DSML｜parameter name="{key}" string="{is_text}">',
        "</｜DSML｜parameter>\n",
        f"</｜DSML｜invoke>\n{end}",
    )
    return _whole("deepseek_dsml", begin, end, tagged_calls.DEEPSEEK.parse, tags)


_FUNCTION_GEMMA = _whole(
    "function_gemma",
    "<start_function_call>",
    "<end_function_call>",
    lambda text, _: gemma_calls.parse(text, "<escape>"),
)
_GEMMA = _whole("gemma", "<|tool_call>", "<tool_call|>", lambda text, _: gemma_calls.parse(text, '<|"|>'))

_BY_TEMPLATE: tuple[tuple[Family, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "<|message|>", "<|start|>")),
    (_dsml("tool_calls"), ("｜DSML｜", "tool_calls>")),
    (_dsml("function_calls"), ("｜DSML｜",)),
    (_DEEPSEEK_R1, (_CALLS_BEGIN, "```json")),
    (_DEEPSEEK, (_CALLS_BEGIN,)),
    (_COMMAND_A, ("<|START_ACTION|>",)),
    (_COMMAND_R, ("<|CHATBOT_TOKEN|>", "Action:")),
    (_INTERNLM, ("<|action_start|>", "<|plugin|>")),
    (_SEED, ("<seed:tool_call>",)),
    (_MINIMAX, ("<minimax:tool_call>",)),
    (_GEMMA, ("<|tool_call>", "<tool_call|>")),
    (_FUNCTION_GEMMA, ("<start_function_call>",)),
    (_LONGCAT, ("<longcat_tool_call>",)),
    (_GLM_ONE_LINE, ("</arg_key><arg_value>",)),
    (_GLM, ("<arg_key>",)),
    (PYTHONIC, ("<|tool_list_start|>",)),
    (PYTHONIC, ("<|tool_call_start|>",)),
    (_QWEN_CODER, ("<tool_call>", "<function=", "<parameter=")),
    (_KIMI_K3, ("<|open|>tools<|sep|>",)),
    (_KIMI_K2, ("<|tool_calls_section_begin|>",)),
    (_MINICPM, ('<function name="', '<param name="')),
    (MISTRAL_ARGS, ("[TOOL_CALLS]", "[ARGS]")),
    (MISTRAL, ("[TOOL_CALLS]",)),
    (_MUSE, ("<atem:function_calls>",)),
    (_PHI, ("<|tool_call|>", "<|/tool_call|>")),
    (_GRANITE, ("<|tool_call|>",)),
    (_NEMOTRON, ("<TOOLCALL>",)),
    (_APRIEL, ("<tool_calls>", "[BEGIN FINAL RESPONSE]")),
    (_JAMBA, ("<tool_calls>",)),
    (_GIGACHAT, ("<|function_call|>",)),
    (_APERTUS, ("<|tools_prefix|>", "<|tools_suffix|>")),
    (LLAMA, ("<|python_tag|>",)),
    (LLAMA, ('"parameters": ', "<|start_header_id|>", "tools")),
    (HERMES, ("<tool_call>",)),
)
"""Families with texts that all stand in their templates, most special first."""


def family_of(template: str, special_tokens: Collection[str] = ()) -> Family:
    """The family whose template this is; ``GENERIC`` for a template that renders no tools."""
    for family, texts in _BY_TEMPLATE:
        if all(text in template for text in texts):
            return family
    if {"<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"} <= set(special_tokens):
        return _KIMI_K3
    if {"<|tool_call_start|>", "<|tool_call_end|>"} <= set(special_tokens):
        return PYTHONIC
    return GENERIC
