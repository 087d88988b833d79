# ruff: noqa: ARG001, ARG002 - the forms follow
"""The form in which a model writes tool calls and reasoning, chosen by its chat template.

Use, for each answer:

    form = format_of(template, special_tokens)                  # once per model
    conversation = form.prepare(conversation, tool_use)         # what the chat template gets
    constraint = form.constraint(tool_use, prompt_end, answer)  # what the answer is held to, if anything
    parser = form.parser(tool_use, prompt_end)                  # then parser.add(piece) …, parser.finish()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgepp.engine.request import Constraint
from edgepp.model.text.conversation import Conversation
from edgepp.tool_calls.tool_use import AnswerPart, Text, ToolUse


class AnswerParser(Protocol):
    """Splits one answer into parts as it comes; joined, the parts do not depend on how the text was cut."""

    def add(self, text: str) -> list[AnswerPart]:
        """The parts that are certain after more ``text``, perhaps none."""

    def finish(self) -> list[AnswerPart]:
        """The parts held back; call it once, at the end of the answer, whatever ended it."""


class ToolFormat(Protocol):
    """How one family of models reads tools and writes calls. Safe to share between answers."""

    @property
    def thinks(self) -> bool:
        """Whether the model writes reasoning before its answers."""

    def prepare(self, conversation: Conversation, tool_use: ToolUse) -> Conversation:
        """What the chat template gets for ``conversation``: tools, and a history that the template accepts.

        Use it for every conversation, with tools or without.
        """

    def constraint(
        self, tool_use: ToolUse, prompt_end: str = "", answer: Constraint | None = None
    ) -> Constraint | None:
        """What the whole answer is held to; None where the model may write anything.

        Args:
            tool_use: The tools, and whether they must be called.
            prompt_end: Text of the last tokens of the prompt, with control tokens: it shows whether reasoning is open.
            answer: What the text of the answer must match besides calls and reasoning, such as a JSON schema.

        Raises:
            UsageError: a grammar cannot hold the arguments of a tool to its schema; the sentence names the tool.
        """

    def parser(self, tool_use: ToolUse, prompt_end: str = "") -> AnswerParser:
        """A parser for one answer; ``prompt_end`` as for ``constraint``."""


def format_of(template: str | None, special_tokens: Mapping[str, int] | None = None) -> ToolFormat:
    """The form of the model with this chat template.

    Args:
        template: The text of the chat template; None for a model without one.
        special_tokens: Id by text of the tokens that ``tokenizer.json`` marks as special: a grammar names these by id.
    """
    return _PassThrough()


class _PassThrough:
    """No tools and no reasoning: the answer is text."""

    thinks = False

    def prepare(self, conversation: Conversation, tool_use: ToolUse) -> Conversation:
        return conversation

    def constraint(
        self,
        tool_use: ToolUse,
        prompt_end: str = "",
        answer: Constraint | None = None,
    ) -> Constraint | None:
        return answer

    def parser(self, tool_use: ToolUse, prompt_end: str = "") -> AnswerParser:
        return _TextParser()


class _TextParser:
    def add(self, text: str) -> list[AnswerPart]:
        return [Text(text)] if text else []

    def finish(self) -> list[AnswerPart]:
        return []
