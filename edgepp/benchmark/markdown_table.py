"""Tables in Markdown, and figures in their cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgepp.benchmark.report import Spread


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table; a column whose heading begins with ``>`` is aligned right."""
    yield "| " + " | ".join(heading.lstrip(">") for heading in headings) + " |"
    yield "|" + "|".join("---:" if heading.startswith(">") else "---" for heading in headings) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def spread(value: Spread) -> str:
    """A median and its spread."""
    return (
        number(value.median) if value.n == 1 else f"{number(value.median)} ({number(value.low)}–{number(value.high)})"
    )
