"""The grammar that holds an answer to its tools: Lark for llguidance.

    start: reasoning? ( text | calls | text calls … )

Special tokens are named by their ids, since a grammar's text never matches a special token; schemas stand as ``%json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgepp.engine.grammar_sandbox import SPACE
from edgepp.engine.request import Constraint
from edgepp.errors import UsageError
from edgepp.model.text.control_tokens import grammar_literal
from edgepp.tool_calls.families import GENERIC, HARMONY
from edgepp.tool_calls.family import Family
from edgepp.tool_calls.reasoning import Beginning, ThinkingMarkers, beginning
from edgepp.tool_calls.schemas import any_object, held_schema
from edgepp.tool_calls.tagged_grammar import TaggedArgument, WrittenTags, arguments_of
from edgepp.tool_calls.tool_use import Tool, ToolUse

_SLASH = re.compile(r"\\.|/", re.DOTALL)
MAX_CALLS = 32
"""Calls that a grammar allows in one answer."""
_ANY = r"/(?s:.*)/"
_NO_JSON_CALL = r"~/\s*\[*\s*\{\s*\"(name|type|function|parameters|arguments)\"(?s:.*)/"
_NO_PYTHON_CALL = r"~/\s*\[\s*[A-Za-z_][\w.:\/-]*\((?s:.*)/"


@dataclass
class _Rules:
    """The rules of one grammar, as they are written."""

    special_tokens: Mapping[str, int]
    lines: list[str] = field(default_factory=lambda: [f"ANY: {_ANY}"])
    text: str = "ANY"
    """The terminal for text of the answer."""
    any: str = _ANY
    """The expression of that terminal."""

    def add(self, name: str, body: str) -> str:
        """Add a rule; returns its name."""
        self.lines.append(f"{name}: {body}")
        return name.partition("[")[0]

    def literal(self, text: str) -> str:
        """Terms for ``text``, in which the names of special tokens are these tokens."""
        return grammar_literal(text, self.special_tokens)

    def up_to(self, name: str, marker: str) -> str:
        """Add a rule for text up to ``marker``, and the marker."""
        term = self.literal(marker)
        return self.add(name if term.startswith("<[") else f"{name}[lazy]", f"{self.text} {term}")


def constraint_of(
    family: Family,
    tool_use: ToolUse,
    answer: Constraint | None,
    thinking: ThinkingMarkers | None,
    prompt_end: str,
    special_tokens: Mapping[str, int],
) -> Constraint | None:
    """The constraint of an answer; None if the answer is free.

    Raises:
        UsageError: a tool has a schema that cannot be held, or ``answer`` cannot stand beside tools or reasoning.
    """
    tools = callable_tools(tool_use)
    begins = beginning(thinking, prompt_end)
    is_free = not tools or not (is_held(tool_use) or family is GENERIC)
    if answer is None and is_free:
        return None
    is_alone = answer is not None and not tools and begins == "closed" and family is not HARMONY
    if is_alone or (answer is not None and answer.kind == "grammar" and not tools):
        return answer
    rules = _Rules(special_tokens)
    if family is HARMONY:
        return Constraint("grammar", "\n".join([_channels(rules, tool_use, tools, answer), *rules.lines]))
    reasoning = _reasoning(rules, thinking, begins) if thinking is not None else ""
    body = _body(rules, family, tool_use, tools, answer)
    start = f"start: {reasoning} ({body})" if reasoning else f"start: {body}"
    return Constraint("grammar", "\n".join([start, *rules.lines]))


def callable_tools(tool_use: ToolUse) -> tuple[Tool, ...]:
    """The tools that an answer may call.

    Raises:
        UsageError: calls are demanded of a tool that is not among the tools, or of none.
    """
    if tool_use.choice == "none":
        return ()
    tools = tool_use.tools
    if tool_use.named is not None:
        tools = tuple(tool for tool in tools if tool.name == tool_use.named)
        if not tools:
            raise UsageError(f"the tool {tool_use.named:.60} is to be called, and is not among the tools")
    if tool_use.choice == "required" and not tools:
        raise UsageError("a tool is to be called, and there are no tools", "give tools, or leave out tool_choice")
    return tools


def is_held(tool_use: ToolUse) -> bool:
    """Whether the client asks for calls or arguments that only a grammar can guarantee."""
    return tool_use.choice == "required" or not tool_use.parallel or any(tool.strict for tool in tool_use.tools)


def _body(rules: _Rules, family: Family, tool_use: ToolUse, tools: Sequence[Tool], answer: Constraint | None) -> str:
    """The alternatives for what follows the reasoning."""
    if tool_use.choice == "required":
        return _calls(rules, family, tool_use, tools)
    tag = rules.literal(family.marker)
    is_tagged = tag.startswith("<[")
    if answer is not None:
        text = rules.add("answer", _embedded(answer))
        if not tools:
            return text
        if not _has_marker(family) and not is_tagged:
            raise UsageError(
                "this model's calls cannot be told from an answer with a schema", "leave out one of the two"
            )
        return f"{text} | {'' if _has_marker(family) else tag} {_calls(rules, family, tool_use, tools)}"
    if not _has_marker(family):
        markers = _without(family.marker, "<function=")
        text = rules.add("BARE_TEXT", " & ".join([_ANY, _NO_JSON_CALL, _NO_PYTHON_CALL, markers]))
        return f"{text} | {tag + '? ' if is_tagged else ''}{_calls(rules, family, tool_use, tools)}"
    if is_tagged:  # the marker's text, written by other tokens, would be a call as well
        rules.text = rules.add("UNMARKED", f"{rules.any} & {_without(family.marker)}")
        return f"{rules.text} ({_calls(rules, family, tool_use, tools)})?"
    head = rules.up_to("head", family.marker)
    return f"{rules.text} | {head} {_calls(rules, family, tool_use, tools, is_behind_marker=True)}"


def _channels(rules: _Rules, tool_use: ToolUse, tools: Sequence[Tool], answer: Constraint | None) -> str:
    """The first rule for an answer in channels."""
    thoughts = rules.up_to("thoughts", "<|end|>")
    begin = rules.literal("<|channel|>analysis<|message|>")
    rules.add("analysis", f"{begin} {thoughts} {rules.literal('<|start|>assistant')}")
    final = rules.literal("<|channel|>final<|message|>")
    text = rules.add("final", f"{final} {_embedded(answer) if answer is not None else 'ANY'}")
    calls = _calls(rules, HARMONY, tool_use, tools) if tools else ""
    alternatives = [calls] if tool_use.choice == "required" else [text, calls] if calls else [text]
    return f"start: analysis? ({' | '.join(alternatives)})"


def _has_marker(family: Family) -> bool:
    return bool(family.marker) and (family.written.before + family.written.call).startswith(family.marker)


def _calls(
    rules: _Rules, family: Family, tool_use: ToolUse, tools: Sequence[Tool], is_behind_marker: bool = False
) -> str:
    """Add rules for one or more calls, without the first marker if ``is_behind_marker``; returns the rule's name."""
    written, skipped = family.written, len(family.marker) if is_behind_marker else 0
    demanded = tool_use.choice == "required"
    calls, first = [], []
    for index, tool in enumerate(tools):
        schema = held_schema(tool) if demanded or tool.strict else any_object()
        before, arguments = _one_call(rules, family, tool, schema, index)
        calls.append(rules.add(f"call_{index}", f"{rules.literal(before)} {arguments}"))
        if skipped and not written.before:
            first.append(rules.add(f"first_{index}", f"{rules.literal(before[skipped:])} {arguments}"))
    call = rules.add("call", " | ".join(calls))
    begun = rules.add("first", " | ".join(first)) if first else call
    several = tool_use.parallel and tool_use.named is None and family.takes_several
    more = f"({rules.literal(written.between)} {call}){{0,{MAX_CALLS - 1}}}" if several else ""
    return rules.add(
        "calls", f"{rules.literal(written.before[skipped:])} {begun} {more} {rules.literal(written.after)}"
    )


def _one_call(rules: _Rules, family: Family, tool: Tool, schema: str, index: int) -> tuple[str, str]:
    """Add rules for a call of one tool; returns the text in front of the arguments, and the terms from there on."""
    tagged = arguments_of(schema) if family.tags is not None else None
    if family.tags is not None and tagged is not None and not _spells_special(rules, tagged):
        arguments = [_tagged(rules, family.tags, tool, one, f"{index}_{at}") for at, one in enumerate(tagged)]
        terms = " ".join([*arguments, rules.literal(family.tags.call_end)])
        return family.tags.call.replace("{name}", tool.name), terms
    before, _, after = family.written.call.partition("{arguments}")
    name = rules.add(f"arguments_{index}", _schema_of(tool, schema))
    return before.replace("{name}", json.dumps(tool.name)[1:-1]), f"{name} {rules.literal(after)}"


def _spells_special(rules: _Rules, tagged: Sequence[TaggedArgument]) -> bool:
    """Whether the name of a special token stands in a key or a fixed text, where it is text."""
    texts = [text for one in tagged for text in (one.key, *(one.texts or ()))]
    return any(name and name in text for name in rules.special_tokens for text in texts)


def _schema_of(tool: Tool, schema: str) -> str:
    """The body of a rule for JSON, with a comment that tells ``grammar_sandbox`` whose schema is at fault."""
    return f"%json {schema} // the schema of the tool {json.dumps(tool.name)}"


def _tagged(rules: _Rules, tags: WrittenTags, tool: Tool, argument: TaggedArgument, place: str) -> str:
    """Add rules for an argument between tags; returns the term of the argument."""
    tag = tags.argument.replace("{is_text}", "false" if argument.texts is None else "true")
    before, after = rules.literal(tag.replace("{key}", argument.key)), rules.literal(tags.argument_end)
    if argument.texts is None:
        value = f"{rules.add(f'value_{place}', _schema_of(tool, argument.schema))} {after}"
    elif argument.texts:
        texts = [rules.literal(one) or '""' for one in argument.texts]
        value = f"({' | '.join(texts)}) {after}"
    else:
        value = rules.add(f"text_{place}" if after.startswith("<[") else f"text_{place}[lazy]", f"ANY {after}")
    name = rules.add(f"argument_{place}", f"{before} {value}")
    return name if argument.is_required else f"{name}?"


def _reasoning(rules: _Rules, thinking: ThinkingMarkers, begins: Beginning) -> str:
    """Add rules for the reasoning in front of the answer; returns the terms of the reasoning."""
    if begins == "closed":
        return ""
    rules.add("WHITE", r"/\s{0,8}/")
    rest = rules.up_to("thoughts", thinking.end)
    begin = rules.literal(thinking.begin)
    if begins == "open":
        return f"{rest} WHITE"
    if not begin.startswith("<["):
        rules.any = rf"{_ANY} & ~/\s*{_escaped(re.escape(thinking.begin))}(?s:.*)/"
        rules.text = rules.add("TEXT", rules.any)
    return f"({begin} {rest} WHITE)?"


def _embedded(answer: Constraint) -> str:
    """The body of a rule for the text of an answer that must match ``answer``."""
    if answer.kind == "json":
        return f"%json {_spaced({'type': 'object'})}"
    if answer.kind == "regex":
        return f"/{_escaped(answer.text)}/"
    if answer.kind == "grammar":
        raise UsageError("an answer with tools cannot be held to a grammar of its own", "leave out one of the two")
    try:
        schema = json.loads(answer.text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the schema of the answer is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError("the schema of the answer must be a JSON object")
    return f"%json {_spaced(schema)}"


def _spaced(schema: Mapping[str, Any]) -> str:
    """A schema of the answer, with white space as ``grammar_sandbox`` allows it."""
    wanted = schema.get("x-guidance")
    guidance = {"whitespace_pattern": SPACE} | (wanted if isinstance(wanted, dict) else {})
    return json.dumps({**schema, "x-guidance": guidance})


def _without(*texts: str) -> str:
    """An expression for all texts that contain none of ``texts``."""
    return rf"~/(?s:.*)({'|'.join(_escaped(re.escape(one)) for one in texts)})(?s:.*)/"


def _escaped(expression: str) -> str:
    """A regular expression, escaped to stand between slashes."""
    return _SLASH.sub(lambda found: "\\/" if found[0] == "/" else found[0], expression).replace("\n", "\\n")
