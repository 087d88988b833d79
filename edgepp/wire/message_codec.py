"""Messages to frames and back: the msgpack header, and the JSON frame that some messages carry.

A header is checked field by field against the annotations of its message class, in two passes in C: one over the types
and one over the values. Headers are decoded between two compute steps, when the interpreter's own code has left the
processor caches, so a Python loop over the fields would cost more. Then ``problem`` of the message class checks
fields that depend on each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from operator import contains
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgpack

from edgepp.errors import LocalProtocolError, RemoteProtocolError
from edgepp.wire.messages import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, VERSION, Message


def encode(message: Message) -> bytes:
    """Header frame of a message; values are not checked, except that they fit into a header.

    Raises:
        LocalProtocolError: The message does not fit into a header.
    """
    try:
        raw: bytes = msgpack.packb((VERSION, _KINDS[type(message)], *message))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot encode a {type(message).__name__} header: {error}") from error
    if len(raw) > MAX_HEADER_BYTES:
        raise LocalProtocolError(
            f"a {type(message).__name__} header of {len(raw)} bytes is longer than {MAX_HEADER_BYTES}"
        )
    return raw


def decode(raw: bytes | memoryview) -> Message:
    """Message of a received header frame, with every field checked.

    Raises:
        RemoteProtocolError: The header is too long, not msgpack, of another version, of an unknown kind, or invalid.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"a header of {len(raw)} bytes is longer than {MAX_HEADER_BYTES}")
    try:
        value = msgpack.unpackb(raw, use_list=False, max_map_len=0, max_ext_len=0, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(f"a header is not msgpack: {error}") from error
    if type(value) is not tuple or len(value) < 2:
        raise RemoteProtocolError("a header is not an array")
    version, kind, *values = value
    if version != VERSION:
        raise RemoteProtocolError(f"the other side speaks protocol version {version!a:.40}, this one {VERSION}")
    layout = _LAYOUTS.get(kind) if type(kind) is str else None
    if layout is None:
        raise RemoteProtocolError(f"a message of unknown kind {kind!a:.40}")
    if not layout.accepts(values):
        raise RemoteProtocolError(f"the {kind} message {layout.problem(values)}")
    message: Message = layout.make(*values)
    if layout.rule is not None and (problem := layout.rule(message)):
        raise RemoteProtocolError(f"the {kind} message {problem}")
    return message


def encode_payload(value: Mapping[str, Any]) -> bytes:
    """JSON frame of ``value``.

    Raises:
        LocalProtocolError: The frame would be longer than ``MAX_PAYLOAD_BYTES``.
    """
    raw = json.dumps(value, ensure_ascii=False).encode()
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"a payload of {len(raw)} bytes is longer than {MAX_PAYLOAD_BYTES}")
    return raw


def decode_payload(frames: Sequence[bytes | memoryview]) -> dict[str, Any]:
    """Object in the JSON frame of a message of two ``frames``; its members are not checked.

    Raises:
        RemoteProtocolError: There is not exactly one frame after the header, or the frame holds no JSON object.
    """
    if len(frames) != 2:
        raise RemoteProtocolError("a message without its one payload frame")
    try:
        value = json.loads(bytes(frames[1]))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"a payload is not JSON: {error}") from error
    if type(value) is not dict:
        raise RemoteProtocolError("a payload is not a JSON object")
    return value


class _TextDomain(NamedTuple):
    """All strings of a bounded length that pass a check."""

    min_length: int
    max_length: int
    check: Callable[[str], bool]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and self.min_length <= len(value) <= self.max_length and self.check(value)


class _BytesDomain(NamedTuple):
    """All bytes of a bounded length."""

    min_length: int
    max_length: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, bytes) and self.min_length <= len(value) <= self.max_length


class _TupleDomain(NamedTuple):
    """All tuples of a bounded length of numbers in ``[0, 2**63)``."""

    min_length: int
    max_length: int

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, tuple)
            and self.min_length <= len(value) <= self.max_length
            and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
        )


def _domain(hint: Any) -> tuple[type, Container[Any]]:
    """Type of a field with the annotation ``hint``, and the container of its valid values."""
    if hint is bool:
        return bool, frozenset((False, True))
    if get_origin(hint) is Literal:
        return str, frozenset(get_args(hint))
    kind, low, high, *check = get_args(hint)
    if kind is int:
        return int, range(low, high + 1)
    if kind is str:
        return str, _TextDomain(low, high, *check)
    return (bytes, _BytesDomain(low, high)) if kind is bytes else (tuple, _TupleDomain(low, high))


class _HeaderLayout(NamedTuple):
    """Fields of one kind of message, in the order of the header."""

    make: Callable[..., Any]
    names: tuple[str, ...]
    types: tuple[type, ...]
    domains: tuple[Container[Any], ...]
    rule: Callable[[Any], str] | None
    """``problem`` of the message class; None for a class without."""

    @classmethod
    def of(cls, kind: Any) -> _HeaderLayout:
        """Layout of a message class."""
        hints = get_type_hints(kind, include_extras=True)
        types, domains = zip(*(_domain(hints[name]) for name in kind._fields), strict=True)
        return cls(kind, kind._fields, types, domains, getattr(kind, "problem", None))

    def accepts(self, values: Sequence[Any]) -> bool:
        """Whether every value is valid. Types are checked first: ``in range`` needs an int."""
        return tuple(map(type, values)) == self.types and all(map(contains, self.domains, values))

    def problem(self, values: Sequence[Any]) -> str:
        """Why ``accepts`` is False, as the end of the sentence "the message …"."""
        if len(values) != len(self.names):
            return f"has {len(values)} fields instead of {len(self.names)}"
        for name, value, kind, domain in zip(self.names, values, self.types, self.domains, strict=True):
            if type(value) is not kind or value not in domain:
                return f"has a bad {name}: {value!a:.60}"
        return "is malformed"


_KINDS: dict[type, str] = {kind: kind.__name__.lower() for kind in get_args(Message)}
_LAYOUTS: dict[str, _HeaderLayout] = {name: _HeaderLayout.of(kind) for kind, name in _KINDS.items()}
