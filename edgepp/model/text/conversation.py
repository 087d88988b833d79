"""A conversation as a chat template takes it: messages, the tools that the model may call, and template variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""``role`` and ``content`` (text, or None beside calls); ``tool_calls`` of an assistant as ``[{"id", "type":
"function", "function": {"name", "arguments": {…}}}]``; ``tool_call_id`` and ``name`` of a tool's result."""


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and what else the chat template renders into the prompt."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions as ``{"type": "function", "function": {"name", "description", "parameters"}}``."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the template, such as ``enable_thinking``."""
    continues: bool = False
    """Whether the answer continues the last message, an assistant's, instead of beginning a new one."""


TokenIds: TypeAlias = tuple[int, ...]
"""A prompt as token ids, sent to the model unchanged."""

Prompt: TypeAlias = str | Conversation | TokenIds
"""A raw text, which the model continues; a conversation; or token ids."""
