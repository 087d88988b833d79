"""Strings that track which of their characters come from a message, through all operations of a chat template.

Text of the template is plain ``str``. ``MessageText`` is text with at least one character from a message, marked per
character. Results of operations on MessageText are MessageText; where it is unknown which characters come from the
message, all characters are marked.
"""

from __future__ import annotations

import operator
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex


class MessageText(str):
    """Text with characters from a message; without ``mask``, all of them are from the message."""

    __slots__ = ("_mask",)
    _mask: bytes

    def __new__(cls, text: object = "", mask: bytes | None = None) -> MessageText:
        """``text`` with its own marks, or with ``mask``: one byte per character, 1 for a message."""
        plain = str.__str__(text) if isinstance(text, str) else str(text)
        instance = super().__new__(cls, plain)
        instance._mask = mask_of(text) if mask is None and isinstance(text, MessageText) else mask or b"\1" * len(plain)
        return instance

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> MessageText:
        return MessageText(str.__mul__(self, times), self._mask * times.__index__())

    __rmul__ = __mul__

    def __getitem__(self, position: SupportsIndex | slice) -> MessageText:
        if not isinstance(position, slice):
            position = range(len(self))[operator.index(position)]  # a key raises the TypeError that jinja expects
            position = slice(position, position + 1)
        return MessageText(str.__getitem__(self, position), self._mask[position])

    def __iter__(self) -> Iterator[str]:
        return (self[position] for position in range(len(self)))

    def _slices_of(self, parts: Iterable[str], gap: int) -> list[str]:
        """The parts as slices of this text, which has them in this order, at least ``gap`` characters apart."""
        slices: list[str] = []
        position = 0
        for part in parts:
            begin = str.index(self, part, position)
            slices.append(self[begin : begin + len(part)])
            position = min(begin + len(part) + gap, len(self))
        return slices


def _stripped(text: MessageText, chars: str | None = None, /) -> MessageText:
    return _left_stripped(_right_stripped(text, chars), chars)


def _left_stripped(text: MessageText, chars: str | None = None, /) -> MessageText:
    return text[len(text) - len(str.lstrip(text, chars)) :]


def _right_stripped(text: MessageText, chars: str | None = None, /) -> MessageText:
    return text[: len(str.rstrip(text, chars))]


def _replaced(text: MessageText, old: str, new: str, count: SupportsIndex = -1, /) -> str:
    if not old:
        return MessageText(str.replace(text, old, new, count))
    return joined([piece for part in text.split(old, count) for piece in (new, part)][1:])


def _splitting(name: str, gap: int | None = None) -> Callable[..., Any]:
    """A method of ``str`` that splits; the pieces are ``gap`` characters apart, or the length of the separator."""
    plain = getattr(str, name)

    def method(text: MessageText, *args: Any, **kwargs: Any) -> Any:
        parts = plain(text, *args, **kwargs)
        separator = kwargs.get("sep") or next(iter(args), None) or ""
        return type(parts)(text._slices_of(parts, len(separator) if gap is None else gap))

    return method


def _mapping(name: str) -> Callable[..., Any]:
    """A method of ``str`` that changes characters: marks are kept if the length is the same."""
    plain = getattr(str, name)

    def method(text: MessageText, *args: Any, **kwargs: Any) -> MessageText:
        changed = plain(text, *args, **kwargs)
        return MessageText(changed, mask_of(text) if len(changed) == len(text) else None)

    return method


def _marking_all(name: str) -> Callable[..., Any]:
    """A method of ``str`` whose whole result is marked."""
    plain = getattr(str, name)

    def method(text: MessageText, *args: Any, **kwargs: Any) -> MessageText:
        return MessageText(str.__str__(plain(text, *args, **kwargs)))

    return method


_METHODS: dict[str, Callable[..., Any]] = {
    "strip": _stripped,
    "lstrip": _left_stripped,
    "rstrip": _right_stripped,
    "removeprefix": lambda text, prefix, /: text[len(text) - len(str.removeprefix(text, prefix)) :],
    "removesuffix": lambda text, suffix, /: text[: len(str.removesuffix(text, suffix))],
    "replace": _replaced,
    "join": lambda text, parts, /: joined([piece for part in parts for piece in (text, part)][1:]),
    "splitlines": _splitting("splitlines", 0),
    "partition": _splitting("partition", 0),
    "rpartition": _splitting("rpartition", 0),
    **{name: _splitting(name) for name in ("split", "rsplit")},
    **{name: _mapping(name) for name in ("upper", "lower", "swapcase", "title", "capitalize", "casefold")},
    **{name: _marking_all(name) for name in ("center", "ljust", "rjust", "zfill", "expandtabs", "translate")},
    **{name: _marking_all(name) for name in ("format", "format_map", "__mod__")},
}
for _name, _method in _METHODS.items():
    setattr(MessageText, _name, _method)


def mask_of(text: str) -> bytes:
    """One byte per character: 1 if the character comes from a message."""
    return text._mask if isinstance(text, MessageText) else b"\0" * len(text)


def spans(text: str) -> list[tuple[int, int]]:
    """The ranges ``(start, stop)`` of ``text`` that come from messages, in order."""
    return [found.span() for found in re.finditer(b"\1+", mask_of(text))]


def joined(parts: Iterable[str]) -> str:
    """``"".join(parts)`` with the marks of all parts."""
    listed = list(parts)
    text = "".join(listed)
    if not any(isinstance(part, MessageText) for part in listed):
        return text
    return MessageText(text, b"".join(map(mask_of, listed)))


def holds_content(value: Any) -> bool:
    """Whether ``value`` is or contains text of a message."""
    if isinstance(value, dict):
        return any(holds_content(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(holds_content, value))
    return isinstance(value, MessageText)


def mark_content(result: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """``result`` of ``function`` with these arguments, with the characters from messages marked.

    The function is called a second time with a secret placeholder in place of each text from a message. If the second
    result with the texts put back equals ``result``, the texts are where the placeholders are; otherwise the whole
    result is marked.
    """
    nonce = "".join(chr(0xF0000 + secrets.randbelow(0x8000)) for _ in range(8))
    texts: list[str] = []

    def replaced(value: Any) -> Any:
        if isinstance(value, MessageText):
            plain, parts, position = str.__str__(str.__getitem__(value, slice(None))), [], 0
            for begin, end in spans(value):
                texts.append(plain[begin:end])
                parts += [plain[position:begin], nonce + chr(0x100000 + len(texts) % 0xF000) + nonce]
                position = end
            return "".join([*parts, plain[position:]])
        if isinstance(value, dict):
            return {replaced(key): replaced(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(replaced, value))
        return value

    try:
        second = function(*replaced(args), **replaced(kwargs))
    except Exception:  # noqa: BLE001 - the origin of each character stays unknown
        return MessageText(result)
    if not isinstance(second, str) or len(texts) > 0xF000:
        return MessageText(result)
    pieces = re.split(f"{nonce}(.){nonce}", str.__str__(second), flags=re.DOTALL)
    parts = [
        MessageText(texts[ord(piece) - 0x100001]) if position % 2 else piece  # numbers begin at 1
        for position, piece in enumerate(pieces)
    ]
    marked = joined(parts)
    return marked if marked == result else MessageText(result)
