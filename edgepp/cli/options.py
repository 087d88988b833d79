"""Option types, help texts and command classes that several commands share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import IO, Any, TypeVar

import click

from edgepp.errors import UsageError

SPECULATE_HELP = (
    "Guess tokens ahead, so that a stage works on a guess while the next stage works on the token before: lookup (from"
    " your texts so far), the name of a small model that guesses too, or off. Guessing never changes an answer, and"
    " pauses where it does not save time."
)
TOGETHER_HELP = (
    "Let one step carry several guesses: faster with one stage. Answers may then differ from those without guesses,"
    " where two tokens are nearly equally likely."
)
MODEL_HELP = "A name from `edgepp models list`, a Hugging Face repository (org/name), or a folder in mlx-lm format."
LOG_FORMAT_HELP = (
    "Log to standard error as text, or as one JSON object per line with time, node, stage, request id and event; the"
    " processes that the command starts do so too. Prompts and answers are never logged.  [default: text]"
)
LOG_LEVEL_HELP = "Lowest level that is logged.  [default: warning; info with --log-format json]"
KV_BITS_HELP = (
    "Bits per key and value in the KV cache, in place of floats: more and longer conversations fit, slightly less"
    " accurate."
)
TENSOR_HELP = "Let T processes on this machine compute each layer of a stage together, or share it unequally, like 5:3."
ALLOW_SLEEP_HELP = "Let this machine sleep while it computes answers; else it is kept awake where the system allows."
BACKENDS = click.Choice(["auto", "mlx", "onnx"])
MAX_TEXT_BYTES = 4 << 20
"""Upper limit of a prompt, schema or grammar: more than the context of any model holds."""


Command = TypeVar("Command", bound=Callable[..., Any])


class CheckedText(click.ParamType):  # type: ignore[type-arg]  # generic in some versions only
    """A text argument, checked: a terminal that is not set to UTF-8 passes bytes that are not text."""

    name = "text"

    def convert(self, value: str, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        """The argument, as checked text.

        Raises:
            UsageError: the argument is too large or not UTF-8.
        """
        return decoded(value.encode("utf-8", "surrogateescape"), "an argument")


class TextFile(click.File):
    """A file of UTF-8 text; the command receives the text, without a byte order mark."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:  # type: ignore[override]
        """The text of the file.

        Raises:
            UsageError: the file is too large or not UTF-8.
        """
        file: IO[bytes] = super().convert(value, param, ctx)
        return decoded(file.read(MAX_TEXT_BYTES + 1), value)


def piped() -> str:
    """All text of standard input.

    Raises:
        UsageError: the input is too large or not UTF-8.
    """
    return decoded(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "standard input")


def decoded(data: bytes, source: str) -> str:
    """``data`` as text; ``source`` names the origin of the data in errors.

    Raises:
        UsageError: ``data`` is too large or not UTF-8.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(
            f"{source} is larger than {MAX_TEXT_BYTES >> 20} MB", "shorten the text: no model reads that much at once"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise UsageError(
            f"{source} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}",
            f"convert the text, for instance with `iconv -f {encoding} -t utf-8`, or set the terminal to UTF-8",
        ) from error


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """A value that a function parses from text, such as an address; the function is imported at the first use."""

    def __init__(self, name: str, reader: Callable[[], Callable[[str], object]]) -> None:
        self.name = name
        self._reader = reader

    def convert(self, value: str, _param: click.Parameter | None, _ctx: click.Context | None) -> object:
        """The result of the function for ``value``.

        Raises:
            UsageError: the function cannot parse ``value``.
        """
        return self._reader()(value)


class Counts(click.ParamType):  # type: ignore[type-arg]
    """A list of counts of ``what``, from 1 to ``maximum``, like ``1,2,4``; the command receives a sorted tuple."""

    name = "counts"

    def __init__(self, what: str, maximum: int) -> None:
        self._what = what
        self._maximum = maximum

    def convert(
        self, value: str | tuple[int, ...], _param: click.Parameter | None, _ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The counts in ``value``, sorted, each once.

        Raises:
            UsageError: ``value`` is not a list of counts from 1 to the maximum.
        """
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        digits = len(str(self._maximum))
        if not all(re.fullmatch(f"[0-9]{{1,{digits}}}", part) and 0 < int(part) <= self._maximum for part in parts):
            raise UsageError(
                f"'{value:.40}' is not a list of numbers of {self._what}",
                f"write 1 to {self._maximum:,} each, like 1,2,4",
            )
        return tuple(sorted({int(part) for part in parts}))


def _address() -> Callable[[str], object]:
    from edgepp.wire.address import Address

    return Address.parse


def _layers() -> Callable[[str], object]:
    from edgepp.layer_range import LayerRange

    return LayerRange.parse


def _bytes() -> Callable[[str], object]:
    from edgepp.plan.quantities import parse_bytes

    return parse_bytes


class _Traced(click.ParamType):  # type: ignore[type-arg]
    """The number of newest requests whose traces are kept, as ``last:N`` or ``off``."""

    name = "traced"

    def convert(self, value: str | int, _param: click.Parameter | None, _ctx: click.Context | None) -> int:
        """Number of requests whose traces are kept, 0 for ``off``.

        Raises:
            UsageError: the text is neither ``off`` nor ``last:N``.
        """
        if value == "off":
            return 0
        if (found := re.fullmatch(r"last:(\d{1,4})", str(value))) is None:
            raise UsageError(f"'{value:.40}' does not say which requests to trace", "write last:20, or off")
        return int(found[1])


def _weights() -> Callable[[str], object]:
    from edgepp.model.tensor_shares import parse_weights

    return parse_weights


class _Bits(click.Choice[str]):
    """A choice between numbers of bits."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:  # type: ignore[override]
        """The chosen number of bits."""
        return int(super().convert(value, param, ctx))


ADDRESS, LAYERS, BYTES = Parsed("address", _address), Parsed("layers", _layers), Parsed("size", _bytes)
TENSOR = Parsed("weights", _weights)
KV_BITS = _Bits(["8", "4"])
TRACED = _Traced()


def complete_models(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of models with a card that begin with ``incomplete``, for the completion of a shell."""
    from edgepp.model.catalogue.cards import catalogue

    return [name for name in catalogue() if name.startswith(incomplete)]


def given_as(*kinds: Callable[[], type[Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Pass a command its options as frozen dataclasses, one per entry of ``kinds``, and other options by keyword.

    Each entry of ``kinds`` is a function that imports and returns a dataclass. An option goes to the field of the same
    name. An option that was not given takes the default of its field, so each default is written once.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**values: object) -> None:
            parts = []
            for find in kinds:
                kind = find()
                given = {field.name: values.pop(field.name, None) for field in fields(kind)}
                parts.append(kind(**{name: value for name, value in given.items() if value not in (None, ())}))
            command(*parts, **values)

        vars(call)["kinds"] = kinds
        return call

    return decorate


def logging_options(command: Command) -> Command:
    """Add --log-format and --log-level to ``command``; logs change as soon as these options are parsed."""

    def chosen(context: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        from edgepp.structured_log import LogOptions, configure

        given = context.meta.setdefault("edgepp.log", {})
        given[param.name.removeprefix("log_") if param.name else ""] = value
        configure(LogOptions(**{"level": "info" if given.get("format") == "json" else "warning", **given}))

    formats, levels = click.Choice(["text", "json"]), click.Choice(["debug", "info", "warning", "error"])
    shared: dict[str, Any] = {"expose_value": False, "callback": chosen}
    command = click.option("--log-level", type=levels, **shared, help=LOG_LEVEL_HELP)(command)
    return click.option("--log-format", type=formats, **shared, help=LOG_FORMAT_HELP)(command)


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings: ``sections`` maps a heading to parameter names.

    Options that no section names, such as ``--json`` and ``--help``, follow under "Other".
    """

    def __init__(self, *args: Any, sections: Mapping[str, tuple[str, ...]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options per section."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        rows = {option.name: row for option in options if (row := option.get_help_record(ctx)) is not None}
        lists = {heading: [rows.pop(name) for name in names] for heading, names in self._sections.items()}
        for heading, listed in (lists | {"Other": list(rows.values())}).items():
            with formatter.section(heading):
                formatter.write_dl(listed)


class CommandGroup(click.Group):
    """A group whose help lists commands in the order in which they were added."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)
