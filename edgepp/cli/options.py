"""What several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import IO, Any

import click

from edgepp.errors import UsageError

SPECULATE_HELP = (
    "Guess tokens ahead, so that one trip verifies several: from the text so far (lookup), by a small model (its name),"
    " or off. It never changes an answer, and stops where it does not pay."
)
MODEL_HELP = "A card name (see `edgepp models list`), a hub repository (org/name), or a folder in mlx-lm format."
KV_BITS_HELP = "Keep keys and values in so many bits: room for longer and more conversations, a little less accurate."
BACKENDS = click.Choice(["auto", "mlx", "onnx"])


MOST_TEXT_BYTES = 4 << 20
"""Bytes of a prompt, schema or grammar: more than any model's context holds."""


class Text(click.ParamType):  # type: ignore[type-arg]  # generic in some versions only
    """Text of a command line; a terminal that is not set to UTF-8 gives bytes that are none."""

    name = "text"

    def convert(self, value: str, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        """The text itself.

        Raises:
            UsageError: it holds bytes that are no UTF-8.
        """
        return decoded(value.encode("utf-8", "surrogateescape"), "an argument")


class TextFile(click.File):
    """A file of UTF-8 text, given to the command as its text; a byte order mark is passed over."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:  # type: ignore[override]
        """The file's text.

        Raises:
            UsageError: it is too large, or no UTF-8.
        """
        file: IO[bytes] = super().convert(value, param, ctx)
        return decoded(file.read(MOST_TEXT_BYTES + 1), value)


def piped() -> str:
    """All of standard input.

    Raises:
        UsageError: it is too large, or no UTF-8.
    """
    return decoded(sys.stdin.buffer.read(MOST_TEXT_BYTES + 1), "standard input")


def decoded(data: bytes, what: str) -> str:
    """``data`` as text.

    Raises:
        UsageError: it is too large, or no UTF-8.
    """
    if len(data) > MOST_TEXT_BYTES:
        raise UsageError(f"{what} is larger than {MOST_TEXT_BYTES >> 20} MB", "give a smaller one")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise UsageError(
            f"{what} is no UTF-8 text: its byte {error.start} is {data[error.start]:#04x}",
            f"convert it, for instance with `iconv -f {encoding} -t utf-8`, or set the terminal to UTF-8",
        ) from error


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """A value that a function reads from text, such as an address; the function is imported when it is needed."""

    def __init__(self, name: str, reader: Callable[[], Callable[[str], object]]) -> None:
        self.name = name
        self._reader = reader

    def convert(self, value: str, _param: click.Parameter | None, _ctx: click.Context | None) -> object:
        """The value.

        Raises:
            UsageError: the text is none.
        """
        return self._reader()(value)


def _address() -> Callable[[str], object]:
    from edgepp.wire.transport import Address

    return Address.parse


def _layers() -> Callable[[str], object]:
    from edgepp.layers import LayerRange

    return LayerRange.parse


def _bytes() -> Callable[[str], object]:
    from edgepp.node.resources import parse_bytes

    return parse_bytes


class _Bits(click.Choice[str]):
    """A number of bits."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:  # type: ignore[override]
        """The number."""
        return int(super().convert(value, param, ctx))


ADDRESS, LAYERS, BYTES = Parsed("address", _address), Parsed("layers", _layers), Parsed("size", _bytes)
KV_BITS = _Bits(["8", "4"])


def given_as(*kinds: Callable[[], type[Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hand a command its options as frozen dataclasses, one for each of ``kinds``, and what none of them holds by name.

    Each of ``kinds`` returns a dataclass, which it may import; an option goes to the field of its name. What was not
    given is left to the field's default, so that there is one default, and the dataclass checks the rest.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**values: object) -> None:
            parts = []
            for find in kinds:
                kind = find()
                told = {field.name: values.pop(field.name, None) for field in fields(kind)}
                parts.append(kind(**{name: value for name, value in told.items() if value not in (None, ())}))
            command(*parts, **values)

        vars(call)["kinds"] = kinds
        return call

    return decorate


class CommandGroup(click.Group):
    """Shows commands in the order in which a newcomer needs them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The commands' names."""
        return list(self.commands)
