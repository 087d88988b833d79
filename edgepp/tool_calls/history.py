"""Conversations rewritten so that a chat template takes them and keeps every message in its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgepp.model.text.conversation import Message
from edgepp.tool_calls.template_limits import TemplateLimits

_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A call that has no result yet, and the message that holds the call."""

    call: dict[str, Any]
    message: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.call["function"].get("name", ""))

    def is_for(self, result: Mapping[str, Any]) -> bool:
        """Whether ``result`` is of this call: by the result's id, else by its name, else because it comes next."""
        if result.get("tool_call_id"):
            return bool(self.call["id"] == result["tool_call_id"])
        return not result.get("name") or result["name"] == self.name


WriteCalls: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], str]
"""The text of calls, each with ``name`` and ``arguments``, as the model writes it."""


def rewritten(
    messages: Sequence[Message], limits: TemplateLimits, tools: bool, write: WriteCalls | None, keep_results: bool
) -> list[dict[str, Any]]:
    """The messages as a template with these limits takes them.

    Args:
        messages: The conversation; ``arguments`` of calls may be JSON text.
        limits: The limits of the template.
        tools: Whether tools are rendered.
        write: Writes calls as text, for a template that does not render them; None where it does.
        keep_results: Whether results stay messages of their own beside calls that are text; else they are a user's.
    """
    plain = [_plain(message, number) for number, message in enumerate(messages)]
    paired = _paired(plain, limits.parallel_calls, limits.call_text and not limits.repeated_roles)
    if limits.long_call_ids:
        paired = _with_ids(paired, _short_id)
    elif limits.call_names:
        paired = _with_ids(paired, _named_id)
    if write is not None:
        paired = _results_joined([_as_text(message, write, keep_results) for message in paired])
    placed = _system_placed(paired, limits)
    has_user = any(message["role"] == "user" for message in placed)
    if limits.no_user and (tools or limits.repeated_roles or not has_user):
        placed = _user_first(placed)
    return _alternating(placed) if limits.repeated_roles else placed


def _plain(message: Message, number: int) -> dict[str, Any]:
    """A message with text content, known roles, and arguments as objects."""
    plain = dict(message)
    if plain.get("role") == "developer":
        plain["role"] = "system"
    elif plain.get("role") in ("function", "ipython"):
        plain["role"] = "tool"
    plain["content"] = _text(plain.get("content"))
    calls = plain.pop("tool_calls", None)
    if calls:
        plain["tool_calls"] = [_plain_call(call, f"call_{number}_{at}") for at, call in enumerate(calls)]
    return plain


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "\n".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
    return "" if content is None else json.dumps(content, ensure_ascii=False)


def _plain_call(call: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    function["arguments"] = _arguments(function.get("arguments"))
    return {**call, "id": call.get("id") or call_id, "type": "function", "function": function}


def _arguments(value: Any) -> Mapping[str, Any]:
    """Arguments as an object; templates encode text once more."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value or "{}", strict=False)
        except (ValueError, RecursionError):
            return {"input": value}
        return parsed if isinstance(parsed, dict) else {"input": value}
    return value if isinstance(value, Mapping) else {}


def _paired(messages: Iterable[dict[str, Any]], one_by_one: bool, text_first: bool) -> list[dict[str, Any]]:
    """Messages whose results follow their calls; ``one_by_one``, each call has a message of its own.

    With ``text_first``, the text beside calls has one too.
    """
    paired: list[dict[str, Any]] = []
    waiting: list[_Waiting] = []
    for message in messages:
        if message["role"] == "tool":
            _place_result(message, paired, waiting)
        elif message.get("tool_calls"):
            split = _with_one_call(message) if one_by_one else _text_first(message) if text_first else [message]
            paired += split
            waiting = [_Waiting(call, one) for one in split for call in one.get("tool_calls", ())]
        else:
            paired.append(message)
    return paired


def _with_one_call(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages with one call each, behind one with the text, which templates for single calls do not render."""
    *text, calls = _text_first(message)
    return [*text, *({**calls, "tool_calls": [call]} for call in message["tool_calls"])]


def _text_first(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message of the text beside calls, if any, and one of the calls."""
    text = [{key: value for key, value in message.items() if key != "tool_calls"}] if message["content"] else []
    return [*text, {**message, "content": ""}]


def _place_result(result: dict[str, Any], paired: list[dict[str, Any]], waiting: list[_Waiting]) -> None:
    """Put a result behind its call and the results that stand there; a result without a call becomes a user's note."""
    found = next((one for one in waiting if one.is_for(result)), None)
    if found is None:
        name = result.get("name")
        head = f"Result of {name}:" if name else "Result of a tool:"
        paired.append({"role": "user", "content": f"{head}\n{result['content']}"})
        return
    waiting.remove(found)
    end = at = next(index for index in range(len(paired), 0, -1) if paired[index - 1] is found.message)
    while end < len(paired) and paired[end]["role"] == "tool":
        end += 1
    placed = {**result, "name": result.get("name") or found.name, "tool_call_id": found.call["id"]}
    paired.insert(end if len(found.message["tool_calls"]) > 1 else at, placed)


def _with_ids(messages: Iterable[dict[str, Any]], make: Callable[[dict[str, Any], int], str]) -> list[dict[str, Any]]:
    """The messages with other ids of calls, made of each call and its number."""
    ids: dict[str, str] = {}
    renamed = []
    number = 0
    for message in messages:
        changed = dict(message)
        if "tool_call_id" in changed:
            changed["tool_call_id"] = ids.get(changed["tool_call_id"], changed["tool_call_id"])
        if "tool_calls" in changed:
            for call in changed["tool_calls"]:
                ids[call["id"]] = make(call, number)
                number += 1
            changed["tool_calls"] = [{**call, "id": ids[call["id"]]} for call in changed["tool_calls"]]
        renamed.append(changed)
    return renamed


def _short_id(call: dict[str, Any], _: int) -> str:
    """Nine letters and digits, as Mistral's templates want them."""
    digest = hashlib.sha256(str(call["id"]).encode("utf-8", "replace")).digest()
    return "".join(_ID_LETTERS[byte % len(_ID_LETTERS)] for byte in digest[:9])


def _named_id(call: dict[str, Any], number: int) -> str:
    """The name and a number, as Kimi writes ids."""
    return f"functions.{call['function'].get('name', '')}:{number}"


def _as_text(message: dict[str, Any], write: WriteCalls, keep_results: bool) -> dict[str, Any]:
    if message["role"] == "tool" and not keep_results:
        return {
            "role": "user",
            "content": f"<tool_response>\n{message['content']}\n</tool_response>",
            "is_result": True,
        }
    calls = message.pop("tool_calls", ())
    texts = [message["content"]] if message["content"] else []
    if calls:
        texts.append(write([call["function"] for call in calls]))
    return {**message, "content": "\n".join(texts)}


def _results_joined(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results in a row as one message."""
    joined: list[dict[str, Any]] = []
    was_result = False
    for message in messages:
        is_result = message.pop("is_result", False)
        if is_result and was_result:
            joined[-1]["content"] += "\n" + message["content"]
        else:
            joined.append(message)
        was_result = is_result
    return joined


def _system_placed(messages: Sequence[dict[str, Any]], limits: TemplateLimits) -> list[dict[str, Any]]:
    """Leading system messages as one; later ones in their places, as notes of the user where the template refuses."""
    leading = 0
    while leading < len(messages) and messages[leading]["role"] == "system":
        leading += 1
    text = "\n\n".join(message["content"] for message in messages[:leading] if message["content"])
    rest = _notes_placed(messages[leading:], limits) if limits.late_system else list(messages[leading:])
    if not text:
        return rest
    if not limits.any_system:
        return [{"role": "system", "content": text}, *rest]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{text}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": text}, *rest]


def _notes_placed(messages: Iterable[dict[str, Any]], limits: TemplateLimits) -> list[dict[str, Any]]:
    """System messages as notes of the user, or in the result before, where another message of the user would harm."""
    in_results = limits.repeated_roles or limits.moving_tools
    placed: list[dict[str, Any]] = []
    for message in messages:
        note = f"[System note]\n{message['content']}"
        if message["role"] != "system":
            placed.append(message)
        elif in_results and placed and placed[-1]["role"] == "tool":
            placed[-1] = {**placed[-1], "content": f"{placed[-1]['content']}\n\n{note}"}
        else:
            placed.append({"role": "user", "content": note})
    return placed


def _user_first(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    begin = 1 if messages and messages[0]["role"] == "system" else 0
    if begin < len(messages) and messages[begin]["role"] == "user":
        return messages
    return [*messages[:begin], {"role": "user", "content": ""}, *messages[begin:]]


def _alternating(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of one role in a row joined, and an assistant's word between calls or results and a user."""
    placed: list[dict[str, Any]] = []
    for message in messages:
        before = placed[-1] if placed else None
        is_pending = before is not None and (before["role"] == "tool" or "tool_calls" in before)
        if is_pending and message["role"] == "user":
            placed.append({"role": "assistant", "content": "OK."})
            before = None
        calls = "tool_calls" in message or (before is not None and "tool_calls" in before)
        if before is not None and before["role"] == message["role"] and message["role"] != "tool" and not calls:
            placed[-1] = {**before, "content": f"{before['content']}\n\n{message['content']}"}
        else:
            placed.append(dict(message))
    return placed
