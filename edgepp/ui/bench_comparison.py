"""Output of `edgepp bench --compare`: whether one report is better than another, then figure by figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

import click
from rich.text import Text

from edgepp.benchmark.comparison import Comparison, Difference, compare, read
from edgepp.benchmark.markdown_table import number
from edgepp.printable import one_line
from edgepp.ui.screen import Rows, Screen

_COLOURS = {"better": "green", "worse": "red", "within the spread": "dim", "one round": "dim"}


def show_comparison(a: str, b: str, *, as_json: bool) -> None:
    """Print the comparison of two reports, ``a`` and ``b``, each the path of a file or of its folder.

    Raises:
        UsageError: a path is not that of a report.
    """
    found = compare(read(a), read(b))
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    console = Screen()
    for line in _remarks(found):
        console.show(line)
    if found.differences:
        table = Rows("FIGURE", ">A", ">B", ">B / A", "B IS")
        for difference in found.differences:
            table.add_row(*_difference(difference))
        console.show("", table)


def _difference(one: Difference) -> tuple[str | Text, ...]:
    figures = (f"{number(f.median)} ({number(f.low)}–{number(f.high)})" for f in (one.a, one.b))
    ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
    return (one.name, *figures, ratio, Text(one.verdict, style=_COLOURS[one.verdict]))


def _remarks(found: Comparison) -> Iterator[str]:
    yield _verdict(found)
    if found.unlike:
        yield f"Other differences: {'; '.join(found.unlike)}."
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            count = f"{len(only)} figures, such as" if len(only) > 1 else "the figure"
            yield f"Only in {name}: {count} {one_line(only[0])!r}."


def _verdict(found: Comparison) -> str:
    """Sentence on whether B is better."""
    count, once = len(found.differences), found.count("one round")
    if not count:
        return "B cannot be compared with A: no figure is in both."
    ratios = [one.ratio if one.a.better == "more" else 1 / one.ratio for one in found.differences if one.ratio]
    typical = f"; the median figure is {statistics.median(ratios):.2f} times as good" if ratios else ""
    if found.verdict == "unknown":
        return (
            f"Whether B is better than A is not known: all {count} figures in both are of one round in A or B, without"
            f" a spread{typical}."
        )
    verdict = "neither better nor worse" if found.verdict == "neither" else found.verdict
    unknown = f", {once} are of one round" if once else ""
    return (
        f"B is {verdict} than A: of {count} figures in both, {found.count('better')} are better and"
        f" {found.count('worse')} worse beyond both spreads{unknown}{typical}."
    )
