"""JSON of clients as values of a type, and its faults as sentences for people who know JSON, not Python.

A sentence begins with the place of the fault: ``messages[0].role must be one of user, assistant, not "wizard"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec import inspect

from edgepp.http_api.failures import RequestError

T = TypeVar("T")
Steps: TypeAlias = Sequence[str | int | None]
"""A path through JSON: names of fields, numbers of items, and None for an unknown key of an object."""

_MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, with which many programs for Windows begin a text."""
_PATH = re.compile(r"(?P<sentence>.*) - at `\$\.?(?P<path>[^`]*)`", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(?:(\d+)|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_RANGE = re.compile(r"Expected `\w+` (of length )?([<>]=) (\S+)")
_MAX_SHOWN = 40
_MAX_WHOLE = 32
"""Numbers of one body that may be whole although they are written with a decimal point."""
_UNKNOWN = object()


def decoded(body: bytes, kind: type[T]) -> T:
    """The value of ``kind`` that ``body`` is as JSON; unknown fields are ignored, and 40.0 is a whole number.

    Raises:
        RequestError: the body is no JSON, or a field is missing or has the wrong type.
    """
    if body.startswith(_MARK):
        body = b" " * len(_MARK) + body[len(_MARK) :]  # blanks, so that places in the text stay right
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        return _with_whole_numbers(body, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("invalid_request", _no_json(body, error), "send one JSON object, as UTF-8") from error


def converted(value: Any, kind: Any, where: str) -> Any:
    """``value``, which was decoded without a type, as a ``kind``; ``where`` is its place in the body.

    Raises:
        RequestError: the value, or a field in it, has the wrong type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error), kind, value, where) from error


def _with_whole_numbers(body: bytes, kind: type[T]) -> T:
    """The value of ``kind`` that ``body`` is, where some numbers are whole but written like ``40.0``.

    Languages with one kind of number write them so. A float is taken for a whole number only where one is wanted.

    Raises:
        RequestError: a field is missing or has the wrong type.
    """
    value = _untyped(body)
    for _ in range(_MAX_WHOLE):
        try:
            return msgspec.json.decode(body, type=kind) if value is _UNKNOWN else msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            _, path = _parted(str(error))
            if not _made_whole(value, kind, _steps(path)):
                raise _wrong_field(str(error), kind, value, "") from error
    raise RequestError("invalid_request", "the body has too many whole numbers with a decimal point")


def _made_whole(value: Any, kind: Any, steps: Steps) -> bool:
    """Whether the number in ``value`` at the end of ``steps`` was like ``40.0``, and is the whole number now."""
    came = _at(value, steps)
    if not isinstance(came, float) or not came.is_integer() or not steps:
        return False
    if not any(isinstance(one, inspect.IntType) for one in _types(kind, steps)):
        return False
    _at(value, steps[:-1])[steps[-1]] = int(came)
    return True


def _untyped(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _UNKNOWN


def _no_json(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "the body is empty"
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    try:
        text = body.decode()  # the error itself counts from the beginning of a string in the body
    except UnicodeDecodeError as wrong:
        return f"the body is not UTF-8: byte {wrong.start} is 0x{body[wrong.start]:02x}, {wrong.reason}"
    reason = str(error).removeprefix("JSON is malformed: ")
    if "truncated" in reason:
        reason = "a text has half of a surrogate pair" if _is_lenient_json(text) else "it ends too early"
    return f"the body is not JSON: {reason}"


def _is_lenient_json(text: str) -> bool:
    """Whether ``text`` is JSON except for surrogates, of which Python's own decoder takes halves."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _wrong_field(message: str, kind: Any, value: Any, where: str) -> RequestError:
    """The error that msgspec's ``message`` tells of ``value``, which is to be a ``kind``."""
    sentence, path = _parted(message)
    named, inside, _ = path.partition("[...]")
    place = where + (f".{named}" if where and named and not named.startswith("[") else named)
    if missing := _MISSING.fullmatch(sentence):
        place = f"{place}.{missing[1]}" if place else missing[1]
        return RequestError("invalid_request", f"{place} is missing", parameter=place)
    steps = _steps(path)
    types, came = _types(kind, steps), _at(value, steps)
    subject = f"a value in {place}" if inside else place or "the body"
    if "out of range" in sentence:
        told = f"{subject} is a number too large to be read"
    else:
        told = f"{subject} must {_demand(sentence, types)}{'' if came is _UNKNOWN else f', not {_shown(came)}'}"
    return RequestError("invalid_request", told, parameter=place or None)


def _parted(message: str) -> tuple[str, str]:
    """The sentence and the path of msgspec's ``message``."""
    found = _PATH.fullmatch(message)
    return (found["sentence"], found["path"]) if found else (message, "")


def _steps(path: str) -> list[str | int | None]:
    return [name or (int(number) if number else None) for name, number in _STEP.findall(path)]


def _demand(sentence: str, types: Sequence[inspect.Type]) -> str:
    if bound := _RANGE.fullmatch(sentence):
        limit, side = bound[3].removesuffix(".0"), "at least" if bound[2] == ">=" else "at most"
        return f"have {side} {limit} character{'' if limit == '1' else 's'}" if bound[1] else f"be {side} {limit}"
    return f"be {_words(types) or 'of another form'}"


def _words(types: Sequence[inspect.Type]) -> str:
    """Kinds of value that a type allows, in words of JSON; null for a missing value is not mentioned."""
    literals = [str(value) for one in types if isinstance(one, inspect.LiteralType) for value in one.values]
    others = list(dict.fromkeys(word for one in types if (word := _word(one))))
    choices = [f"one of {', '.join(literals)}"] if literals else []
    return " or ".join([*choices, *others])


def _word(kind: inspect.Type) -> str:
    match kind:
        case inspect.StrType():
            return "text"
        case inspect.IntType():
            return "a whole number"
        case inspect.FloatType():
            return "a number"
        case inspect.BoolType():
            return "true or false"
        case inspect.ListType():
            return "a list"
        case inspect.StructType() | inspect.DictType():
            return "an object"
    return ""


def _types(kind: Any, steps: Steps) -> list[inspect.Type]:
    """The types that a value may have at the end of ``steps``."""
    types = list(_flat(inspect.type_info(kind)))
    for step in steps:
        found = [_field(one, step) if isinstance(step, str) else _item(one) for one in types]
        types = [flat for one in found if one is not None for flat in _flat(one)]
    return types


def _flat(kind: inspect.Type) -> Iterator[inspect.Type]:
    for one in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        yield one.type if isinstance(one, inspect.Metadata) else one


def _field(kind: inspect.Type, name: str) -> inspect.Type | None:
    fields = kind.fields if isinstance(kind, inspect.StructType) else ()
    return next((field.type for field in fields if field.encode_name == name), None)


def _item(kind: inspect.Type) -> inspect.Type | None:
    if isinstance(kind, inspect.ListType):
        return kind.item_type
    return kind.value_type if isinstance(kind, inspect.DictType) else None


def _at(value: Any, steps: Steps) -> Any:
    """The value inside ``value`` that is reached by ``steps``."""
    for step in steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return _UNKNOWN
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
