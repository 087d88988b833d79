"""The bodies of ``/v1/messages`` and ``/v1/messages/count_tokens``. Fields that are not named here are ignored."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Block(msgspec.Struct, omit_defaults=True):
    """A content block of any type; ``type`` decides which fields are read."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    tool_name: str | None = None
    content: Any = None
    """Content of a ``tool_result``: null, a string, or blocks."""
    is_error: bool | None = None
    title: str | None = None
    context: str | None = None
    """What the client says about a ``document``."""
    source: Any = None
    tool: Any = None
    """Tool of a ``tool_addition`` or ``tool_removal``: a reference to a tool, or its definition."""
    cache_control: Any = None


class InputMessage(msgspec.Struct):
    """A message of the conversation. ``system`` is a note of the client's program, which may stand anywhere."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block] | None


class ToolDefinition(msgspec.Struct):
    """A tool. One without ``input_schema`` is a tool of Anthropic's servers, or a set of such tools, without a name.

    The model hears of a tool with ``defer_loading`` where a ``tool_reference`` or ``tool_addition`` names the tool.
    """

    name: str = ""
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    cache_control: Any = None


class ToolChoice(msgspec.Struct):
    """Whether and which tools are to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Whether the model is to think before it answers; ``disabled`` switches it off, any other type on."""

    type: str


class OutputFormat(msgspec.Struct):
    """Form that the text of the answer must have."""

    type: str
    schema: Any = None


class OutputConfig(msgspec.Struct):
    """Options for the form of the answer."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountTokensBody(msgspec.Struct, kw_only=True):
    """The fields that make the prompt."""

    messages: list[InputMessage]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None


class MessagesBody(CountTokensBody, kw_only=True):
    """A prompt, with options for its answer."""

    max_tokens: int | None = None
    """Tokens of the answer, cut to those that fit; None or less than 0: all that fit; 0: only fill the prefix cache."""
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    output_format: OutputFormat | None = None
    """The older place of ``output_config.format``."""
