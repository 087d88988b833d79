"""The families of models by the way that they write calls, each recognised by the text of its chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from edgepp.tool_calls import gemma_calls, kimi_calls, tagged_calls
from edgepp.tool_calls.fenced_calls import Dropped, FencedCalls, HeadedCalls, Heads
from edgepp.tool_calls.marked_calls import AnyCalls, NamedCalls, WholeCalls
from edgepp.tool_calls.readers import Call, Reader
from edgepp.tool_calls.tagged_grammar import WrittenTags
from edgepp.tool_calls.tool_use import Tool

Parse = Callable[[str, Mapping[str, Tool]], list[Call] | None]
_FUNCTION = re.compile(r"\s*([\w.:/-]+)>\s*(?=\{)")
_MISTRAL = re.compile(r"\s*([\w.:/-]+)(?:\[CALL_ID\][^\[\]{}]*)?(?:\[ARGS\])?\s*(?=\{)")


@dataclass(frozen=True)
class WrittenCall:
    """How a grammar writes calls: ``{name}`` stands for the name of a tool, and ``{arguments}`` for JSON."""

    call: str
    before: str = ""
    between: str = ""
    after: str = ""


@dataclass(frozen=True)
class Family:
    """One way to write calls."""

    name: str
    written: WrittenCall
    marker: str = ""
    """What begins calls; empty where JSON alone does."""
    closing: str = ""
    parse: Parse | None = None
    """How calls between ``marker`` and ``closing`` are read once they are whole; None where they are JSON."""
    tags: WrittenTags | None = None
    """How a grammar writes calls with tags around arguments, where it can; ``written`` is for the other calls."""
    named: re.Pattern[str] | None = None
    """For calls as a name and JSON: what stands between marker and JSON."""
    headed: Heads | None = None
    """For calls with a head of their own each, up to ``closing``."""
    is_fenced: bool = False
    """Whether the list of calls stands in a fence of Markdown."""
    wrappers: tuple[str, ...] = ()
    """Markers around answers that are no part of the text."""
    bare: bool = False
    """Whether calls also come without marker, as JSON or like Python."""
    function_tags: bool = False
    """Whether calls also come as ``<function=name>{…}</function>``."""
    takes_several: bool = True
    """Whether a grammar allows several calls in one answer; models that never learned calls would not end them."""

    def markers(self, tools: Mapping[str, Tool]) -> dict[str, Callable[[], Reader]]:
        """The texts that begin calls, and how to make the readers of what follows."""
        names = tuple(tools)
        markers: dict[str, Callable[[], Reader]] = dict.fromkeys(self.wrappers, Dropped)
        if self.headed is not None:
            heads = self.headed
            markers[self.marker] = lambda: HeadedCalls(names, self.marker, self.closing, heads)
        elif self.is_fenced:
            markers[self.marker] = lambda: FencedCalls(names, self.marker)
        elif self.parse is not None:
            parse = self.parse
            markers[self.marker] = lambda: WholeCalls(names, self.marker, self.closing, lambda text: parse(text, tools))
        elif self.marker:
            closings = (self.closing,) if self.closing else ()
            markers[self.marker] = lambda: AnyCalls(names, self.marker, closings, self.named)
        if self.function_tags:
            markers["<function="] = lambda: NamedCalls(names, "<function=", _FUNCTION, "</function>")
        return markers


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
_INTERNLM = Family(
    "internlm",
    WrittenCall('<|action_start|><|plugin|>{"name": "{name}", "parameters": {arguments}}<|action_end|>'),
    "<|action_start|><|plugin|>",
    "<|action_end|>",
    takes_several=False,
)
_CALLED = '{"tool_name": "{name}", "parameters": {arguments}}'
_COMMAND_R = Family("command_r", WrittenCall(_CALLED, "Action: ```json\n[", ", ", "]\n```"), "Action:", is_fenced=True)
_COMMAND_A = Family(
    "command_a",
    WrittenCall('{"tool_call_id": "0", ' + _CALLED[1:], "<|START_ACTION|>[", ", ", "]<|END_ACTION|>"),
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
    return Family(name, WrittenCall(marker + _JSON + closing, between="\n"), marker, closing, parse, tags)


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
_KIMI_K2 = _whole(
    "kimi_k2",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    lambda text, _: kimi_calls.parse(text),
)
_FUNCTION_GEMMA = _whole(
    "function_gemma",
    "<start_function_call>",
    "<end_function_call>",
    lambda text, _: gemma_calls.parse(text, "<escape>"),
)
_GEMMA = _whole("gemma", "<|tool_call>", "<tool_call|>", lambda text, _: gemma_calls.parse(text, '<|"|>'))

_BY_TEMPLATE: tuple[tuple[Family, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "<|message|>", "<|start|>")),
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
    (_JAMBA, ("<tool_calls>",)),
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
