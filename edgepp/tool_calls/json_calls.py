"""Calls that a model writes as JSON objects with a name and arguments, read as they come."""

from __future__ import annotations

import json
import re
from typing import Any

from edgepp.errors import EdgeppError
from edgepp.tool_calls.json_stream import BrokenJsonError, JsonObjectStream
from edgepp.tool_calls.readers import MAX_HELD, Call, CallsReader, Reader, whole
from edgepp.tool_calls.tool_use import AnswerPart, CallArguments, CallEnded, CallStarted, Text

_MAX_HEAD = 512
"""Characters in front of the arguments, which are read again with each piece."""
_NAME_KEYS = ("name", "function", "tool_name", "tool")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_OTHER_KEYS = ("type", "id", "call_id", "tool_call_id", "index")
_KEYS = _NAME_KEYS + _ARGUMENT_KEYS + _OTHER_KEYS
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)("?)', re.DOTALL)
_NUMBER = re.compile(r"[0-9]+")
_WHITE = re.compile(r"\s*")


class Arguments(Reader):
    """The arguments of a call whose name is known: an object, passed on as it comes."""

    def __init__(self, name: str, in_object: bool = False) -> None:
        self._name = name
        self._begun = self._ended = False
        self._broken: EdgeppError | None = None
        """The fault of arguments that are not JSON, raised after the parts before the fault."""
        self._arguments = JsonObjectStream()
        self._tail = JsonObjectStream.after_a_value() if in_object else None

    @property
    def is_broken(self) -> bool:
        """Whether the arguments are not JSON, so that ``add`` and ``finish`` raise."""
        return self._broken is not None

    def _add(self, text: str) -> list[AnswerPart]:
        if self._broken is not None:
            raise self._broken
        if self._ended:
            self._skip_tail(text)
            return []
        parts: list[AnswerPart] = [] if self._begun else [CallStarted(self._name)]
        self._begun = True
        try:
            passed, rest = self._arguments.add(text)
        except BrokenJsonError as error:
            passed, rest = error.passed, None
            self._broken = EdgeppError(
                f"the model wrote a call of {self._name} whose arguments are not JSON: {error}",
                "ask again, or hold the arguments to their schema with strict",
            )
        if passed:
            parts.append(CallArguments(passed))
        if rest is not None:
            parts.append(CallEnded())
            self._ended = True
            self._skip_tail(rest)
        return parts

    def _finish(self) -> list[AnswerPart]:
        if self._broken is not None:
            raise self._broken
        return []

    def _skip_tail(self, text: str) -> None:
        """Drop the end of the object around the arguments; models forget its brace, so anything else ends it too."""
        if self._tail is None:
            self.rest = text
            return
        try:
            _, self.rest = self._tail.add(text)
        except BrokenJsonError as error:
            self.rest = text[error.at :]


class HeldObject(Reader):
    """A JSON object that is held back until it is whole, since its name does not come first."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._object = JsonObjectStream()
        self._raw: list[str] = []
        self._passed: list[str] = []
        self._length = 0

    def _add(self, text: str) -> list[AnswerPart]:
        try:
            passed, rest = self._object.add(text)
        except BrokenJsonError as error:
            return self._release(text[: error.at], text[error.at :])
        self._raw.append(text[: len(text) - len(rest or "")])
        self._passed.append(passed)
        self._length += len(text)
        if rest is not None:
            call = interpreted(json.loads("".join(self._passed)), self._names)
            if call is None:
                return self._release("", rest)
            self.rest = rest
            return whole(call)
        return self._release("") if self._length > MAX_HELD else []

    def _finish(self) -> list[AnswerPart]:
        return self._release("")

    def _release(self, text: str, rest: str = "") -> list[AnswerPart]:
        self.rest = rest
        return [Text("".join([*self._raw, text]))]


class CallObject(Reader):
    """A JSON object that is a call of one of ``names``, or text."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._head = ""
        self._inner: Reader | None = None

    def _add(self, text: str) -> list[AnswerPart]:
        if self._inner is None:
            self._head += text
            found = _read_head(self._head[:_MAX_HEAD], self._names)
            if found == "unknown" and len(self._head) < _MAX_HEAD:
                return []
            if found == "text":
                self.rest = self._head[1:]
                return [Text(self._head[:1])]
            if isinstance(found, tuple):
                name, at = found
                self._inner, text = Arguments(name, in_object=True), self._head[at:]
            else:
                self._inner, text = HeldObject(self._names), self._head
        parts = self._inner.add(text)
        self.rest = self._inner.rest
        return parts

    def _finish(self) -> list[AnswerPart]:
        return [Text(self._head)] if self._inner is None else self._inner.finish()


class JsonCalls(CallsReader):
    """One or more call objects, in a list, divided by semicolons, or one after the other, up to ``close``."""

    def __init__(self, names: tuple[str, ...], opening: str = "", closings: tuple[str, ...] = ()) -> None:
        """Prepare to read; the arguments are a ``CallsReader``'s."""
        super().__init__(names, opening, closings)
        self._gap = self._opening
        """Text in front of the next call."""
        self._waiting = ""
        """Text that may become a closing."""
        self._called = False
        self._object: CallObject | None = None

    def _add(self, text: str) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        while text and self.rest is None:
            if self._object is None:
                text = self._between(text, parts)
                continue
            found = self._object.add(text)
            parts += self._accepted(found)
            if self._object.rest is None:
                break
            text, self._object = self._object.rest, None
            if any(isinstance(part, Text) for part in found):
                self.rest = text
        return parts

    def _finish(self) -> list[AnswerPart]:
        if self._object is not None:
            return self._accepted(self._object.finish())
        return [] if self._called or not self._gap else [Text(self._gap)]

    def _accepted(self, found: list[AnswerPart]) -> list[AnswerPart]:
        """The parts of a call object, with the text in front of it unless it is a call."""
        if any(isinstance(part, CallStarted) for part in found):
            self._called, self._gap = True, ""
        elif any(isinstance(part, Text) for part in found):
            gap, self._gap = self._gap, ""
            return [Text(gap), *found] if gap else found
        return found

    def _between(self, text: str, parts: list[AnswerPart]) -> str:
        """Read the text between calls; returns the text from the next call on."""
        text, self._waiting = self._waiting + text, ""
        allowed = " \t\r\n,;]}" if self._called else " \t\r\n["
        end = next((at for at, character in enumerate(text) if character not in allowed), len(text))
        self._gap += text[:end]
        text = text[end:]
        if text.startswith("{"):
            self._object = CallObject(self._names)
            return text
        for closing in self._closings if self._called else ():
            if text.startswith(closing):
                self.rest = text[len(closing) :]
                return ""
            if closing.startswith(text):
                self._waiting = text
                return ""
        if text:
            parts += [] if self._called else [Text(self._gap)]
            self.rest = text
        return ""


def interpreted(value: Any, names: tuple[str, ...]) -> Call | None:
    """The call that a JSON value means; None if the value is no call of one of ``names``."""
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if isinstance(function, dict):
        return interpreted(function, names)
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    arguments = next((value[key] for key in _ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False)
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    return (name, arguments) if name is not None and name in names and isinstance(arguments, dict) else None


def named_objects(text: str) -> list[Call] | None:
    """The calls in a list such as ``[{"get_weather": {…}}]``; None if ``text`` is not one."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    objects = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) and len(one) == 1 for one in objects):
        return None
    calls = [call for one in objects for call in one.items()]
    return calls if calls and all(isinstance(arguments, dict) for _, arguments in calls) else None


def _read_head(text: str, names: tuple[str, ...]) -> tuple[str, int] | str:
    """The name and the place of the arguments, by the beginning of an object; else "text", "hold" or "unknown"."""
    name = ""
    at = 1
    while True:
        at = _skip(text, at)
        key, at, found = _string(text, at, _KEYS)
        if found != "string":
            return found
        at = _skip(text, at)
        if at == len(text):
            return "unknown"
        if text[at] != ":":
            return "text"
        at = _skip(text, at + 1)
        if at == len(text):
            return "unknown"
        if key in _ARGUMENT_KEYS:
            return (name, at) if name and text[at] == "{" else "hold"
        if key in _NAME_KEYS and text[at] == "{":
            return "hold"
        if key == "index":
            number = _NUMBER.match(text, at)
            at = number.end() if number else at
        else:
            allowed = ("function",) if key == "type" else names if key in _NAME_KEYS else None
            value, at, found = _string(text, at, allowed)
            if found != "string":
                return found
            name = value if key in _NAME_KEYS else name
        at = _skip(text, at)
        if at == len(text):
            return "unknown"
        if text[at] != ",":
            return "hold" if text[at] == "}" else "text"
        at += 1


def _skip(text: str, at: int) -> int:
    found = _WHITE.match(text, at)
    return found.end() if found else at


def _string(text: str, at: int, allowed: tuple[str, ...] | None) -> tuple[str, int, str]:
    """The string at ``at``, the index of its end, and "string", "text" if it is none of ``allowed``, or "unknown"."""
    if at == len(text):
        return "", at, "unknown"
    found = _STRING.match(text, at)
    if found is None:
        return "", at, "text"
    value, quote = found.groups()
    if quote:
        return value, found.end(), "string" if allowed is None or value in allowed else "text"
    may_become = allowed is None or any(one.startswith(value) for one in allowed)
    return "", at, "unknown" if may_become else "text"
