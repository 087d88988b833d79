"""The prompt of an answer: a raw text, a conversation as a chat template takes it, or token ids. Pure data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""``role`` and ``content`` (text, or None beside calls); ``reasoning_content`` and ``tool_calls`` of an assistant, the
calls as ``[{"id", "type": "function", "function": {"name", "arguments": {…}}}]``; ``tool_call_id`` and ``name`` of a
tool's result. ``prompt_check`` checks the fields."""


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools and variables that the chat template renders into the prompt."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions as ``{"type": "function", "function": {"name", "description", "parameters"}}``."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the template, such as ``enable_thinking``."""
    continues: bool = False
    """Whether the answer continues the last message, an assistant's, without the white space at its end, instead of
    beginning a new one."""

    @classmethod
    def of(cls, question: str) -> Conversation:
        """The conversation of one message, a user's ``question``."""
        return cls(({"role": "user", "content": question},))

    def to_json(self) -> dict[str, Any]:
        """The conversation as a JSON object, with all fields by their names; ``Conversation(**…)`` makes it again."""
        return {
            "messages": [dict(message) for message in self.messages],
            "tools": [dict(tool) for tool in self.tools],
            "variables": dict(self.variables),
            "continues": self.continues,
        }


TokenIds: TypeAlias = tuple[int, ...]
"""A prompt as token ids, sent to the model unchanged."""

Prompt: TypeAlias = str | Conversation | TokenIds
"""A raw text, which the model continues; a conversation; or token ids."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model gets it."""

    ids: list[int]
    opening: str = ""
    """Text that the chat template wrote behind the last text of a message, and that begins the answer, such as
    ``<|im_start|>assistant`` and ``<think>``."""
