"""The families that mlx-lm can parse: its parsers and edgepp's find the same calls in the same answers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgepp.tool_calls.tool_use import CallArguments, CallStarted, Tool, ToolUse
from tests.unit.tool_calls import templates as t
from tests.unit.tool_calls.answers import parts_of

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "deep": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"type": "object"},
    },
}
TOOL = Tool("find-it", "Finds.", SCHEMA)
ARGUMENTS = {
    "text": 'of "two"\nlines, 5 < 6 & 75%',
    "count": 3,
    "ratio": 0.5,
    "deep": True,
    "tags": ["a", "b c"],
    "place": {"city": "Köln", "near": [1, 2]},
}


def raw(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tagged(before: str, argument: str, after: str, arguments: dict[str, Any]) -> str:
    written = [argument.replace("KEY", key).replace("VALUE", raw(value)) for key, value in arguments.items()]
    return before + "".join(written) + after


JSON_CALL = json.dumps({"name": "find-it", "arguments": ARGUMENTS})
ANSWERS = [
    ("json_tools", t.QWEN, f"<tool_call>\n{JSON_CALL}\n</tool_call>"),
    ("mistral", t.MISTRAL, f"[TOOL_CALLS][{JSON_CALL}]"),
    ("mistral", t.MISTRAL_ARGS, f"[TOOL_CALLS]find-it[ARGS]{json.dumps(ARGUMENTS)}"),
    (
        "qwen3_coder",
        t.QWEN_CODER,
        tagged(
            "<tool_call>\n<function=find-it>\n",
            "<parameter=KEY>\nVALUE\n</parameter>\n",
            "</function>\n</tool_call>",
            ARGUMENTS,
        ),
    ),
    (
        "glm47",
        t.GLM,
        tagged(
            "<tool_call>find-it\n",
            "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n",
            "</tool_call>",
            ARGUMENTS,
        ),
    ),
    (
        "longcat",
        t.LONGCAT,
        tagged(
            "<longcat_tool_call>find-it\n",
            "<longcat_arg_key>KEY</longcat_arg_key>\n<longcat_arg_value>VALUE</longcat_arg_value>\n",
            "</longcat_tool_call>",
            ARGUMENTS,
        ),
    ),
    (
        "minimax_m2",
        t.MINIMAX,
        tagged(
            '<minimax:tool_call>\n<invoke name="find-it">\n',
            '<parameter name="KEY">VALUE</parameter>\n',
            "</invoke>\n</minimax:tool_call>",
            ARGUMENTS,
        ),
    ),
    (
        "minicpm5",
        t.MINICPM,
        tagged(
            '<function name="find-it">', '<param name="KEY"><![CDATA[VALUE]]></param>', "</function>", {"text": "a<b"}
        ),
    ),
    (
        "muse_spark",
        t.MUSE,
        tagged(
            '<atem:function_calls>\n<atem:invoke name="find-it">\n',
            '<atem:parameter name="KEY">VALUE</atem:parameter>\n',
            "</atem:invoke>\n</atem:function_calls>",
            ARGUMENTS,
        ),
    ),
    (
        "kimi_k2",
        t.KIMI_K2,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.find-it:0<|tool_call_argument_begin|>"
        f"{json.dumps(ARGUMENTS)}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    (
        "gemma4",
        t.GEMMA_4,
        '<|tool_call>call:find-it{text:<|"|>a "b", {c}<|"|>,count:3,tags:[<|"|>a<|"|>,<|"|>b<|"|>],'
        'place:{city:<|"|>Köln<|"|>}}<tool_call|>',
    ),
]
PLAIN_ANSWERS = [
    (
        "kimi_k3",
        t.KIMI_K3,
        '<|open|>tools<|sep|><|open|>call tool="find" index="1"<|sep|>'
        '<|open|>argument key="text" type="string"<|sep|>Paris<|close|>argument<|sep|>'
        '<|open|>argument key="count" type="number"<|sep|>3<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
    ),
    (
        "function_gemma",
        t.FUNCTION_GEMMA,
        "<start_function_call>call:find{text:<escape>Paris<escape>,count:3,ratio:0.5,deep:false}<end_function_call>",
    ),
    (
        "pythonic",
        t.LFM,
        '<|tool_call_start|>[find(text="Paris", count=3, ratio=0.5, deep=False)]<|tool_call_end|>',
    ),
]


def found_by_mlx(module: ModuleType, answer: str, tool: Tool) -> tuple[str, Any]:
    inner = answer.strip().removeprefix(module.tool_call_start)
    inner = inner.removesuffix(module.tool_call_end) if module.tool_call_end else inner
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    found = module.parse_tool_call(inner, [{"type": "function", "function": function}])
    call = found[0] if isinstance(found, list) else found
    return call["name"], call["arguments"]


@pytest.mark.parametrize(("parser", "template", "answer"), ANSWERS + PLAIN_ANSWERS)
def test_mlx_and_edgepp_find_the_same_call(parser: str, template: str, answer: str) -> None:
    tool = Tool("find" if (parser, template, answer) in PLAIN_ANSWERS else "find-it", "Finds.", SCHEMA)
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    parts = parts_of(template, list(answer), ToolUse((tool,)))
    assert isinstance(parts[0], CallStarted), parts
    assert isinstance(parts[1], CallArguments)
    assert (parts[0].name, json.loads(parts[1].text)) == found_by_mlx(module, answer, tool)


def test_every_parser_of_mlx_is_compared_here() -> None:
    package = importlib.import_module("mlx_lm.tool_parsers")
    (folder,) = package.__path__
    known = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    same = {"laguna": "glm47"}
    assert known - same.keys() == {parser for parser, _, _ in ANSWERS + PLAIN_ANSWERS}
