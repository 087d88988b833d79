"""What people see: text without control characters or markup of others, and tables whose cells are never cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    """Print ``text``, which may come from anywhere, on standard output or with ``err`` on standard error."""
    text = printable(text)
    if dim or bold or red:
        text = click.style(text, fg="red" if red else None, dim=dim or None, bold=bold or None)
    click.echo(text, nl=nl, err=err)


def say_json(value: object) -> None:
    """Print ``value`` as one line of JSON."""
    click.echo(json_line(value))


class Screen(Console):
    """A rich console for text that may come from anywhere; where the output is no terminal its lines have no end."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = _UNBOUNDED

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces that are written, each cleaned of control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def show(self, *parts: RenderableType) -> None:
        """Print sentences and tables, one below the other; what is longer than a line goes on in the next."""
        for part in parts:
            self.print(part, crop=False)


class Rows:
    """A table whose cells are never cut.

    Where a row is wider than the screen, the first columns stay a table and the others follow below, each with its
    heading. A heading that begins with ``>`` is of numbers.
    """

    def __init__(self, *headings: str) -> None:
        self._right = [heading.startswith(">") for heading in headings]
        self._headings = [Text(heading.removeprefix(">"), style="bold") for heading in headings]
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row: a cell for each heading, or for the first ones."""
        cells += ("",) * (len(self._headings) - len(cells))
        row = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        self._rows.append([Text(one_line(cell.plain), style=cell.style) for cell in row])

    def lines(self, width: int) -> Iterator[Text]:
        """The table's lines on a screen of ``width`` cells."""
        table = [self._headings, *self._rows]
        widths = [max(row[column].cell_len for row in table) for column in range(len(self._headings))]
        fitting = sum(sum(widths[:n]) + len(_GAP) * (n - 1) <= width for n in range(1, len(widths) + 1)) or 1
        for index, row in enumerate(table):
            yield _aligned(row[:fitting], widths, self._right)
            if index:
                yield from self._below(row, fitting, width)

    def _below(self, row: list[Text], fitting: int, width: int) -> Iterator[Text]:
        """The cells that had no place beside the others, as many in a line as fit."""
        line = Text()
        for heading, cell in zip(self._headings[fitting:], row[fitting:], strict=True):
            if not cell.plain:
                continue
            item = Text.assemble((f"{heading.plain.lower()} ".lstrip(), "dim"), cell)
            if line and line.cell_len + len(_BETWEEN) + item.cell_len > width:
                yield line
                line = Text()
            line = Text.assemble(line, _BETWEEN, item) if line else Text.assemble(_INDENT, item)
        if line:
            yield line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for line in self.lines(options.max_width):
            line.no_wrap, line.overflow = True, "ignore"
            yield line


def _aligned(row: list[Text], widths: list[int], right: list[bool]) -> Text:
    line = Text()
    for index, cell in enumerate(row):
        space = " " * (widths[index] - cell.cell_len)
        line.append(_GAP if index else "")
        line = Text.assemble(line, space if right[index] else "", cell, "" if right[index] else space)
    line.rstrip()
    return line
