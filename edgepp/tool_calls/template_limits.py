"""Parts of a conversation that a chat template refuses, drops or moves, found by rendering short conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgepp.model.text.conversation import Conversation, Message

Render: TypeAlias = Callable[[Conversation], str | None]
"""The text of a conversation, by the model's template; None if the template refuses the conversation."""

_ROLE = r"(?:message|msg|m)(?:\.role|\[['\"]role['\"]\])"
_PRINTS_ROLE = re.compile(rf"[+~(]\s*{_ROLE}|{_ROLE}\s*[+~]|\{{\{{-?\s*{_ROLE}")
_LATE_SYSTEM = re.compile(
    r"role\s*==\s*['\"]system['\"]\s+and\s+not\s+loop\.first|not\s+loop\.first[^%]*['\"]system['\"]"
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "weigh_fruit",
        "description": "Weighs.",
        "parameters": {"type": "object", "properties": {"fruit": {"type": "string", "description": "Which."}}},
    },
}
_LONG_ID, _SHORT_ID = "call_fruit_1", "fruit1234"


@dataclass(frozen=True)
class TemplateLimits:
    """Parts of a conversation that a template does not render as they are."""

    late_system: bool = False
    """A system message behind the beginning: refused, dropped, or moved to the front."""
    any_system: bool = False
    """A system message at all: refused, dropped, or not kept at the beginning as the conversation goes on."""
    repeated_roles: bool = False
    """Two user or two assistant messages in a row."""
    parallel_calls: bool = False
    """More than one call in a message."""
    long_call_ids: bool = False
    """Ids of calls that are not nine letters and digits."""
    call_names: bool = False
    """Names of calls: only their ids are rendered."""
    no_user: bool = False
    """Tools, or any conversation, without a user message at the beginning."""
    calls: bool = False
    """Calls, and perhaps their results."""
    results: bool = False
    """Results of calls in messages of their own."""
    call_text: bool = False
    """Text beside calls, which is dropped."""
    tools: bool = False
    """Tools."""
    moving_tools: bool = False
    """Tools at the beginning: they are rendered beside the newest message of the user."""

    @classmethod
    def of(cls, template: str, render: Render | None = None) -> TemplateLimits:
        """The limits of a template, by renderings of ``render``; without ``render``, by the text of the template."""
        if render is None:
            return cls._read(template)
        if _shows(render, [_user("apple")], "apple"):
            return cls._tried(template, render, needs_tools=False)
        if _shows(render, [_user("apple")], "apple", tools=True):
            return cls._tried(template, render, needs_tools=True)
        return cls._read(template)

    @classmethod
    def _read(cls, template: str) -> TemplateLimits:
        alternates = "must alternate" in template
        refuses = "must be at the beginning" in template or alternates
        takes_late = _PRINTS_ROLE.search(template) or _LATE_SYSTEM.search(template)
        refusals = ("ystem role not supported", "Only user and assistant roles are supported!")
        drops = "system" not in template and not takes_late
        any_system = drops or any(refusal in template for refusal in refusals)
        return cls(
            late_system=any_system or refuses or takes_late is None,
            any_system=any_system,
            repeated_roles=alternates,
            parallel_calls="single tool-call" in template,
            long_call_ids="length 9" in template or "length != 9" in template,
            no_user=_wants_user(template),
            calls="tool_calls" not in template,
            results="tool_calls" not in template,
            moving_tools="[AVAILABLE_TOOLS]" in template and "[-1]" in template,
        )

    @classmethod
    def _tried(cls, template: str, render: Render, needs_tools: bool) -> TemplateLimits:
        def shows(messages: Sequence[Message], *words: str) -> bool:
            return _shows(render, messages, *words, tools=needs_tools)

        takes_long = _shows(render, _called(_LONG_ID), "apple", "quince", "melon", tools=True)
        takes_short = _shows(render, _called(_SHORT_ID), "apple", "quince", "melon", tools=True)
        takes_calls, call_id = takes_long or takes_short, _LONG_ID if takes_long else _SHORT_ID
        takes_two = _shows(render, _called(call_id, "fruit5678"), "quince", "quince", "melon", tools=True)
        late = [_user("apple"), _assistant("cherry"), _system("grape"), _user("melon")]
        leading = [_system("grape"), _user("apple")]
        longer = [*leading, _assistant("cherry"), _user("melon")]
        return cls(
            late_system=not shows(late, "apple", "cherry", "grape", "melon"),
            any_system=not (shows(leading, "grape", "apple") and shows(longer, "grape", "apple")),
            repeated_roles=not shows([_user("apple"), _user("melon")], "apple", "melon"),
            parallel_calls=takes_calls and not takes_two,
            long_call_ids=takes_short and not takes_long,
            no_user=_wants_user(template) or not _shows(render, [_system("grape")], "grape", tools=True),
            call_names=takes_calls and not _shows(render, _called(call_id), "apple", "weigh_fruit", tools=True),
            calls=not takes_calls,
            results=not takes_calls and not _shows(render, _result_of_text(), "cherry", "melon", tools=True),
            call_text=takes_calls
            and not _shows(render, _called(call_id, text="cherry"), "cherry", "quince", tools=True),
            tools=not _shows(render, [_user("apple")], "weigh_fruit", tools=True),
            moving_tools=_shows(render, longer[1:], "cherry", "weigh_fruit", tools=True),
        )


def _wants_user(template: str) -> bool:
    return any(one in template for one in ("must alternate", "first user message", "No user query"))


def _shows(render: Render, messages: Sequence[Message], *words: str, tools: bool = False) -> bool:
    """Whether the template renders these messages with ``words`` in this order."""
    text = render(Conversation(messages, tools=(_TOOL,) if tools else ()))
    at = 0
    for word in words:
        at = -1 if text is None else text.find(word, at)
        if at < 0:
            return False
        at += len(word)
    return True


def _called(*call_ids: str, text: str = "") -> list[dict[str, Any]]:
    """A question, calls with these ids beside ``text``, and their results."""
    function = {"name": "weigh_fruit", "arguments": {"fruit": "quince"}}
    calls = [{"id": one, "type": "function", "function": function} for one in call_ids]
    results = [{"role": "tool", "name": "weigh_fruit", "tool_call_id": one, "content": "melon"} for one in call_ids]
    return [_user("apple"), {"role": "assistant", "content": text, "tool_calls": calls}, *results]


def _result_of_text() -> list[dict[str, Any]]:
    """A question, a call that is text, and its result."""
    return [_user("apple"), _assistant("cherry"), _called(_LONG_ID)[-1]]


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}
