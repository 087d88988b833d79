"""Strings that know which of their characters came from a message, so that a chat template cannot launder them.

A template's own text is plain ``str``. ``MessageText`` is text with at least one character of a message in it, marked
character by character. Whatever is made of MessageText is MessageText; where it is not known which characters came from
the message, all of them count as such.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex


class MessageText(str):
    """Text of a message, or made of it. Without a ``mask``, every character came from the message."""

    __slots__ = ("_mask",)
    _mask: bytes

    def __new__(cls, text: object = "", mask: bytes | None = None) -> MessageText:
        """``text`` with its own marks, or with ``mask``."""
        plain = str.__str__(text) if isinstance(text, str) else str(text)
        made = super().__new__(cls, plain)
        made._mask = mask_of(text) if mask is None and isinstance(text, MessageText) else mask or b"\1" * len(plain)
        return made

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> MessageText:
        return MessageText(str.__mul__(self, times), self._mask * times.__index__())

    __rmul__ = __mul__

    def __getitem__(self, place: SupportsIndex | slice) -> MessageText:
        if not isinstance(place, slice):
            place = range(len(self))[place.__index__()]
            place = slice(place, place + 1)
        return MessageText(str.__getitem__(self, place), self._mask[place])

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def _found(self, parts: Iterable[str], apart: int) -> list[str]:
        """Pieces that lie in this text in this order, ``apart`` characters or some white space between them."""
        found: list[str] = []
        place = 0
        for part in parts:
            begin = str.index(self, part, place)
            found.append(self[begin : begin + len(part)])
            place = min(begin + len(part) + apart, len(self))
        return found


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


def _parted(name: str, apart: int | None = None) -> Callable[..., Any]:
    """A method of ``str`` that takes it apart; pieces lie ``apart`` characters apart, or a separator's length."""
    plain = getattr(str, name)

    def method(text: MessageText, *args: Any, **kwargs: Any) -> Any:
        parts = plain(text, *args, **kwargs)
        separator = kwargs.get("sep") or next(iter(args), None) or ""
        return type(parts)(text._found(parts, len(separator) if apart is None else apart))

    return method


def _changed(name: str) -> Callable[..., Any]:
    """A method of ``str`` that changes characters: the marks stay where the length does."""
    plain = getattr(str, name)

    def method(text: MessageText, *args: Any, **kwargs: Any) -> MessageText:
        changed = plain(text, *args, **kwargs)
        return MessageText(changed, mask_of(text) if len(changed) == len(text) else None)

    return method


def _marked(name: str) -> Callable[..., Any]:
    """A method of ``str`` whose whole result counts as a message's."""
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
    "splitlines": _parted("splitlines", 0),
    "partition": _parted("partition", 0),
    "rpartition": _parted("rpartition", 0),
    **{name: _parted(name) for name in ("split", "rsplit")},
    **{name: _changed(name) for name in ("upper", "lower", "swapcase", "title", "capitalize", "casefold")},
    **{name: _marked(name) for name in ("center", "ljust", "rjust", "zfill", "expandtabs", "translate")},
    **{name: _marked(name) for name in ("format", "format_map", "__mod__")},
}
for _name, _method in _METHODS.items():
    setattr(MessageText, _name, _method)


def mask_of(text: str) -> bytes:
    """A byte for each character: 1 if it came from a message."""
    return text._mask if isinstance(text, MessageText) else b"\0" * len(text)


def spans(text: str) -> list[tuple[int, int]]:
    """The ranges of ``text`` that came from messages, in order."""
    return [found.span() for found in re.finditer(b"\1+", mask_of(text))]


def joined(parts: Iterable[str]) -> str:
    """``"".join``, with marks if there are any."""
    listed = list(parts)
    text = "".join(listed)
    if not any(isinstance(part, MessageText) for part in listed):
        return text
    return MessageText(text, b"".join(map(mask_of, listed)))


def holds_content(value: Any) -> bool:
    """Whether text of a message lies anywhere in ``value``."""
    if isinstance(value, dict):
        return any(holds_content(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(holds_content, value))
    return isinstance(value, MessageText)


def located(result: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """``result``, which ``function`` made of these arguments, with its characters of messages marked.

    Found by calling it again with private characters in place of each message's: if exactly they are missing from the
    second result, the rest is the function's own and the template's.
    """
    nonce = "".join(chr(0xF0000 + secrets.randbelow(0x8000)) for _ in range(8))
    texts: list[str] = []

    def hidden(value: Any) -> Any:
        if isinstance(value, MessageText):
            plain, parts, place = str.__str__(str.__getitem__(value, slice(None))), [], 0
            for begin, end in spans(value):
                texts.append(plain[begin:end])
                parts += [plain[place:begin], nonce + chr(0x100000 + len(texts) % 0xF000) + nonce]
                place = end
            return "".join([*parts, plain[place:]])
        if isinstance(value, dict):
            return {hidden(key): hidden(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(hidden, value))
        return value

    try:
        again = function(*hidden(args), **hidden(kwargs))
    except Exception:  # noqa: BLE001 - a template's own trouble: it is not known which characters are whose
        return MessageText(result)
    if not isinstance(again, str) or len(texts) > 0xF000:
        return MessageText(result)
    pieces = re.split(f"{nonce}(.){nonce}", str.__str__(again), flags=re.DOTALL)
    parts = [
        MessageText(texts[ord(piece) - 0x100001]) if place % 2 else piece  # the number begins at 1
        for place, piece in enumerate(pieces)
    ]
    whole = joined(parts)
    return whole if whole == result else MessageText(result)
