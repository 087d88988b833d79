"""Printing: text without control characters and markup, and tables that fit any width without cutting cells."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NoReturn

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from edgepp.printable import json_line, one_line, printable

_UNBOUNDED = 100_000
_INDENT = "    "
_GAP = "  "
_BETWEEN = " · "


def say(
    text: str = "", *, nl: bool = True, err: bool = False, dim: bool = False, bold: bool = False, red: bool = False
) -> None:
    """Print ``text``, cleaned of control characters, on standard output or with ``err`` on standard error."""
    text = printable(text)
    if (dim or bold or red) and os.environ.get("TERM") != "dumb":
        text = click.style(text, fg="red" if red else None, dim=dim or None, bold=bold or None)
    click.echo(text, nl=nl, err=err)


def counted(count: int, noun: str) -> str:
    """``count`` things, such as ``1 token`` or ``2 tokens``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def say_json(value: object) -> None:
    """Print ``value`` as one line of JSON."""
    click.echo(json_line(value))


class Screen(Console):
    """A rich console that removes control characters, and wraps lines only on a terminal."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = _UNBOUNDED

    def on_broken_pipe(self) -> NoReturn:
        """Let the BrokenPipeError at hand end the command like that of any other print, for a closed pipe."""
        raise

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments to write, each cleaned of control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def show(self, *parts: RenderableType) -> None:
        """Print sentences and tables, one below the other; long lines wrap."""
        for part in parts:
            self.print(part, crop=False)


class Rows:
    """A table whose cells are never cut.

    If a row is wider than the screen, the first columns stay a table, and the other cells follow below the row, each
    with its heading. A heading that begins with ``>`` aligns its column to the right.
    """

    def __init__(self, *headings: str) -> None:
        self._right = [heading.startswith(">") for heading in headings]
        self._headings = [Text(heading.removeprefix(">"), style="bold") for heading in headings]
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row with one cell per heading; missing cells at the end are empty."""
        cells += ("",) * (len(self._headings) - len(cells))
        row = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        self._rows.append([Text(one_line(cell.plain), style=cell.style) for cell in row])

    def lines(self, width: int) -> Iterator[Text]:
        """The lines of the table on a screen of ``width`` cells."""
        table = [self._headings, *self._rows]
        widths = [max(row[column].cell_len for row in table) for column in range(len(self._headings))]
        fitting = sum(sum(widths[:n]) + len(_GAP) * (n - 1) <= width for n in range(1, len(widths) + 1)) or 1
        for index, row in enumerate(table):
            yield _aligned(row[:fitting], widths, self._right)
            if index:
                yield from self._below(row, fitting, width)

    def _below(self, row: list[Text], fitting: int, width: int) -> Iterator[Text]:
        """The cells that do not fit into the row, as many per line as fit."""
        line = Text()
        for heading, cell in zip(self._headings[fitting:], row[fitting:], strict=True):
            if not cell.plain:
                continue
            item = Text.assemble((f"{heading.plain.lower()} ".lstrip(), "dim"), cell)
            if line and line.cell_len + len(_BETWEEN) + item.cell_len > width:
                yield line
                line = Text()
            if line:
                line = Text.assemble(line, _BETWEEN, item)
            else:
                *full, line = _filled(item, width)
                yield from full
        if line:
            yield line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for line in self.lines(options.max_width):
            line.no_wrap, line.overflow = True, "ignore"
            yield line


def _filled(item: Text, width: int) -> list[Text]:
    """Indented lines of ``item``, broken between words; a word that is wider than the screen stays whole."""
    lines: list[Text] = []
    for word in item.split(" "):
        if lines and lines[-1].cell_len + 1 + word.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], " ", word)
        else:
            lines.append(Text.assemble(_INDENT, word))
    return lines


def _aligned(row: list[Text], widths: list[int], right: list[bool]) -> Text:
    line = Text()
    for index, cell in enumerate(row):
        space = " " * (widths[index] - cell.cell_len)
        line.append(_GAP if index else "")
        line = Text.assemble(line, space if right[index] else "", cell, "" if right[index] else space)
    line.rstrip()
    return line
