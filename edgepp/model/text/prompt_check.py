"""Checks of a prompt before it is encoded: fields of its messages, size, depth, and that its text is Unicode.

A conversation comes from other programs, and goes to a chat template that expects certain fields and types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgepp.errors import UsageError
from edgepp.model.text.conversation import Conversation, Prompt

MAX_MESSAGES = 10_000
MAX_TOOLS = 1024
MAX_PROMPT_BYTES = 16 << 20
"""Limit of the bytes of a prompt: its text in UTF-8, and eight bytes per other value."""
MAX_DEPTH = 64
"""Limit of the levels of objects and lists within a message, a tool or a variable."""
RESERVED_VARIABLES = frozenset(
    ("messages", "tools", "add_generation_prompt", "continue_final_message", "raise_exception", "strftime_now")
) | frozenset(("namespace", "dict", "range", "cycler", "joiner", "lipsum", "self"))
"""Names in a chat template that no variable of a conversation can have."""

_TEXT_FIELDS = frozenset({"role", "content", "name", "tool_call_id", "reasoning_content"})
_CALL_FIELDS = frozenset({"id", "type", "function"})
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_VALUE_BYTES = 8
_MAX_BITS = 1024


def check_prompt(prompt: Prompt) -> None:
    """Check everything about ``prompt`` that does not depend on the model.

    Raises:
        UsageError: a field or value cannot be used; the sentence names it.
    """
    if isinstance(prompt, str):
        _check_size("a prompt", _bytes_of_text(prompt, "the prompt"))
    elif isinstance(prompt, Conversation):
        check_conversation(prompt)
    elif not prompt:
        raise UsageError("the prompt is empty", "give at least one token id")
    else:
        for token in prompt:
            if type(token) is not int:
                raise UsageError(f"a prompt of token ids holds whole numbers only, not {token!r:.40}")


def check_conversation(conversation: Conversation) -> None:
    """Check messages, tools and variables, and their size together.

    Raises:
        UsageError: a field or value cannot be used; the sentence names it.
    """
    _check_count("messages", conversation.messages, MAX_MESSAGES)
    _check_count("tools", conversation.tools, MAX_TOOLS)
    if not conversation.messages:
        raise UsageError("the conversation is empty", "give at least one message")
    size_bytes = 0
    for place, message in enumerate(conversation.messages):
        size_bytes += _checked_message(message, f"messages[{place}]")
    for place, tool in enumerate(conversation.tools):
        size_bytes += _checked_tool(tool, f"tools[{place}]")
    size_bytes += _checked_variables(conversation.variables)
    _check_size("a conversation", size_bytes)
    if conversation.continues:
        _check_continued(conversation.messages[-1])


def characters_of(prompt: Prompt) -> int:
    """Characters of a checked prompt, in all its texts; 0 for token ids."""
    if isinstance(prompt, str):
        return len(prompt)
    if not isinstance(prompt, Conversation):
        return 0
    return sum(map(_characters, (prompt.messages, prompt.tools, prompt.variables)))


def rendered_characters_of(conversation: Conversation) -> int:
    """Characters of the texts that every chat template renders whole: all but reasoning."""
    shown = [
        [value for name, value in message.items() if name != "reasoning_content"] for message in conversation.messages
    ]
    return _characters(shown) + _characters(conversation.tools)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value)) + sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


def _check_size(what: str, size_bytes: int) -> None:
    if size_bytes > MAX_PROMPT_BYTES:
        raise UsageError(f"{what} may have {MAX_PROMPT_BYTES} bytes, and this one has {size_bytes}", "shorten it")


def _check_count(what: str, values: Any, most: int) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UsageError(f"{what} must be a list, not {values!r:.40}")
    if len(values) > most:
        raise UsageError(f"a conversation may have {most} {what}, not {len(values)}")


def _check_continued(last: Mapping[str, Any]) -> None:
    if last.get("role") != "assistant" or not last.get("content"):
        raise UsageError("an answer can only continue text of an assistant", "end with such a message")


def _checked_message(message: Any, where: str) -> int:
    """Check a message; returns its size in bytes."""
    if not isinstance(message, Mapping):
        raise UsageError(f"{where} must be an object with role and content, not {message!r:.40}")
    for name, value in message.items():
        if name in _TEXT_FIELDS:
            if value is not None and not isinstance(value, str):
                raise UsageError(f"{where}.{name} must be text, not {value!r:.40}")
        elif name != "tool_calls":
            raise UsageError(f"{where} has a field {name!r:.40}, which no message can have")
    calls = message.get("tool_calls")
    _check_calls(calls, where)
    if not message.get("role"):
        raise UsageError(f"{where} has no role", "give system, user, assistant or tool")
    if message.get("content") is None and not calls and not message.get("reasoning_content"):
        raise UsageError(f"{where} has no content", "give its text")
    return sum(_bytes_of(value, f"{where}.{name}") for name, value in message.items())


def _check_calls(calls: Any, where: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list | tuple):
        raise UsageError(f"{where}.tool_calls must be a list, not {calls!r:.40}")
    for place, call in enumerate(calls):
        at = f"{where}.tool_calls[{place}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not set(call) <= _CALL_FIELDS:
            raise UsageError(f"{at} must be an object with id, type and function")
        if set(function) != {"name", "arguments"} or not isinstance(function["name"], str):
            raise UsageError(f"{at}.function must have a name, which is text, and arguments")
        if not isinstance(function["arguments"], dict):
            raise UsageError(f"{at}.function.arguments must be an object, not {function['arguments']!r:.40}")
        if not isinstance(call.get("id", ""), str) or call.get("type", "function") != "function":
            raise UsageError(f"{at} must have an id that is text, and the type function")


def _checked_tool(tool: Any, where: str) -> int:
    """Check a tool; returns its size in bytes."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f"{where} must be an object with a function that has a name")
    if not isinstance(function.get("parameters", {}), dict):
        raise UsageError(f"{where}.function.parameters must be a JSON schema, an object")
    return _bytes_of(dict(tool), where)


def _checked_variables(variables: Any) -> int:
    """Check the variables of a conversation; returns their size in bytes."""
    if not isinstance(variables, Mapping):
        raise UsageError(f"the variables of a template must be an object, not {variables!r:.40}")
    for name in variables:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name) or name in RESERVED_VARIABLES:
            raise UsageError(f"a template cannot be given a variable {name!r:.80}")
    return _bytes_of(dict(variables), "the variables of the template")


def _bytes_of(value: Any, where: str, depth: int = 0) -> int:
    """Check a JSON value; returns its size in bytes as ``MAX_PROMPT_BYTES`` counts them.

    Raises:
        UsageError: a part of the value is not JSON, not Unicode text, or nested too deeply.
    """
    if isinstance(value, str):
        return _bytes_of_text(value, where)
    if value is None or (isinstance(value, int) and value.bit_length() <= _MAX_BITS):
        return _VALUE_BYTES
    if isinstance(value, float) and math.isfinite(value):
        return _VALUE_BYTES
    if depth == MAX_DEPTH:
        raise UsageError(f"{where}: objects or lists lie more than {MAX_DEPTH} levels deep")
    if isinstance(value, list | tuple):
        return _VALUE_BYTES + sum(_bytes_of(part, where, depth + 1) for part in value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return _VALUE_BYTES + sum(_bytes_of(part, where, depth + 1) for pair in value.items() for part in pair)
    raise UsageError(f"{where} holds {value!r:.40}, which is no value of JSON")


def _bytes_of_text(text: str, where: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: character {error.start + 1} of the text is half of a surrogate pair, which is not Unicode text",
            "give the text in UTF-8",
        ) from error
