"""The form in which a model writes tool calls and reasoning, chosen by its chat template.

Use, for each answer:

    form = format_of(template, special_tokens)                  # once per model
    conversation = form.prepare(conversation, tool_use)         # what the chat template gets
    constraint = form.constraint(tool_use, prompt_end, answer)  # what the answer is held to, if anything
    parser = form.parser(tool_use, prompt_end)                  # then parser.add(piece) …, parser.finish()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from edgepp.engine.request import Constraint
from edgepp.model.text.conversation import Conversation
from edgepp.tool_calls.answer_parser import CallParser, SplitAnswerParser
from edgepp.tool_calls.families import GENERIC, HARMONY, family_of
from edgepp.tool_calls.family import Family
from edgepp.tool_calls.generic_prompt import with_tools
from edgepp.tool_calls.grammar import callable_tools, constraint_of, is_held
from edgepp.tool_calls.harmony import HarmonyParser
from edgepp.tool_calls.history import rewritten
from edgepp.tool_calls.marked_calls import AnyCalls
from edgepp.tool_calls.reasoning import ReasoningSplitter, ThinkingMarkers, beginning, markers_of
from edgepp.tool_calls.template_limits import Render, TemplateLimits
from edgepp.tool_calls.tool_use import AnswerPart, Tool, ToolUse


class AnswerParser(Protocol):
    """Parser that splits one answer into parts as it comes; joined, the parts do not depend on the cuts of the text.

    A call without ``CallEnded`` was cut, by the length or by the model itself, so that its arguments are incomplete.
    """

    def add(self, text: str) -> list[AnswerPart]:
        """The parts that are certain after more ``text``, perhaps none.

        Raises:
            EdgeppError: the arguments of a call that has begun are not JSON; the answer cannot go on.
        """

    def finish(self) -> list[AnswerPart]:
        """The parts held back; call it once, at the end of the answer, whatever ended it.

        Raises:
            EdgeppError: the arguments of a call that has begun are not JSON.
        """


class ToolFormat(Protocol):
    """Form in which one family of models reads tools and writes calls. Safe to share between answers."""

    @property
    def thinks(self) -> bool:
        """Whether the model writes reasoning before its answers."""

    def prepare(self, conversation: Conversation, tool_use: ToolUse) -> Conversation:
        """The conversation for the chat template: with tools, and a history that the template accepts.

        Use it for every conversation, with tools or without.
        """

    def constraint(
        self, tool_use: ToolUse, prompt_end: str = "", answer: Constraint | None = None
    ) -> Constraint | None:
        """The constraint of the whole answer; None where the model may write anything.

        Args:
            tool_use: The tools, and whether they must be called.
            prompt_end: The template's text behind the last message, ``EncodedPrompt.opening``, which may open the
                reasoning, or close an empty one.
            answer: The constraint of the text besides calls and reasoning, such as a JSON schema.

        Raises:
            UsageError: a grammar cannot hold the arguments of a tool to its schema; the sentence names the tool.
        """

    def parser(self, tool_use: ToolUse, prompt_end: str = "") -> AnswerParser:
        """A parser for one answer; ``prompt_end`` as for ``constraint``."""


def format_of(
    template: str | None, special_tokens: Mapping[str, int] | None = None, render: Render | None = None
) -> ToolFormat:
    """The form of the model with this chat template.

    Args:
        template: The text of the chat template; None for a model without one.
        special_tokens: Id by text of the tokens that ``tokenizer.json`` marks as special: a grammar names these by id.
        render: Renders by the template, to learn what the template refuses: the first use of the form besides
            ``thinks`` tries ten short conversations, and blocks meanwhile.
    """
    text = template or ""
    special = dict(special_tokens or {})
    return _FamilyFormat(text, special, render, markers_of(text, special))


@dataclass(frozen=True)
class _FamilyFormat:
    """The form of a model of one family."""

    template: str
    special_tokens: Mapping[str, int]
    render: Render | None
    thinking: ThinkingMarkers | None

    @cached_property
    def limits(self) -> TemplateLimits:
        return TemplateLimits.of(self.template, self.render)

    @cached_property
    def family(self) -> Family:
        family = self._by_template
        return GENERIC if self.limits.tools and family is not HARMONY else family

    @cached_property
    def _by_template(self) -> Family:
        return family_of(self.template, self.special_tokens)

    @property
    def thinks(self) -> bool:
        return self.thinking is not None or self._by_template is HARMONY

    def prepare(self, conversation: Conversation, tool_use: ToolUse) -> Conversation:
        tools = [tool for tool in tool_use.tools if tool.listed and tool_use.choice != "none"]
        is_generic = self.family is GENERIC
        given = conversation.messages
        described = with_tools(given, tools) if tools and is_generic else given
        write = self.family.write if is_generic or self.limits.calls else None
        keep_results = not is_generic and not self.limits.results
        messages = rewritten(described, self.limits, bool(tools), write, keep_results)
        rendered = () if is_generic else tuple(map(_rendered, tools))
        return replace(conversation, messages=messages, tools=rendered)

    def constraint(
        self, tool_use: ToolUse, prompt_end: str = "", answer: Constraint | None = None
    ) -> Constraint | None:
        return constraint_of(self.family, tool_use, answer, self.thinking, prompt_end, self.special_tokens)

    def parser(self, tool_use: ToolUse, prompt_end: str = "") -> AnswerParser:
        if self.family is HARMONY:
            return HarmonyParser(tuple(tool.name for tool in callable_tools(tool_use)))
        reasoning = ReasoningSplitter(self.thinking, beginning(self.thinking, prompt_end))
        tools = {tool.name: tool for tool in callable_tools(tool_use)}
        return SplitAnswerParser(reasoning, self._calls(tools, tool_use) if tools or self.family.wrappers else None)

    def _calls(self, tools: Mapping[str, Tool], tool_use: ToolUse) -> CallParser:
        held = is_held(tool_use)
        names = tuple(tools)
        bare = self.family.bare and not (held and self.family is GENERIC)
        closings = (self.family.closing,) if self.family.closing else ()
        return CallParser(
            self.family.markers(tools),
            (lambda: AnyCalls(names, closings=closings)) if bare else None,
            at_lines=not held,
            is_held=held,
        )


def _rendered(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates take it."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}
