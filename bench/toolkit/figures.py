"""Rounds in turn, medians with their spread, ratios within a round, and tables for people."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bench.toolkit.script import say
from edgepp.benchmark.report import Spread

K = TypeVar("K")
V = TypeVar("V")

Results = Sequence[Mapping[str, Any]]
"""One result per round."""


def interleave(
    cases: Mapping[K, Callable[[int], V]], rounds: int, describe: Callable[[V], str] | None = None
) -> dict[K, list[V]]:
    """Run each case once to warm up, then all cases in turn, round after round; returns the results by case.

    A case is called with the number of the round, 0 for the warm-up. ``describe`` makes the progress text of a result.
    """
    results: dict[K, list[V]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        which = f"round {turn} of {rounds}" if turn else "warm-up"
        for case, measure in cases.items():
            found = measure(turn)
            if turn:
                results[case].append(found)
            if describe is not None:
                say(f"{which}: {case}: {describe(found)}")
        if describe is None:
            say(which)
    return results


def prompt(vocabulary: int, tokens: int, turn: int) -> list[int]:
    """Prompt of one round: always the same for a round, different between rounds, so that no prompt cache helps."""
    numbers = random.Random(turn)  # noqa: S311 - not a secret
    return [numbers.randrange(vocabulary) for _ in range(tokens)]


def medians(results: Results, names: Sequence[str]) -> dict[str, Any]:
    """Median of each figure, and as ``spread`` the smallest and the largest value of each."""
    return _flat({name: Spread.of([float(result[name]) for result in results]) for name in names})


def ratios(
    over: Sequence[Mapping[str, Any]], under: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """Ratio of each rate ``NAME_tokens_per_s`` in one round, ``over`` divided by ``under``: median and ``spread``."""
    sides = {name: [[float(one[f"{name}_tokens_per_s"]) for one in side] for side in (over, under)] for name in names}
    return _flat({name: Spread.of_ratios(*columns) for name, columns in sides.items()})


def ratio(value: Spread) -> dict[str, Any]:
    """One ratio as ``ratio`` and ``spread`` of a result."""
    return {"ratio": value.median, "spread": [value.low, value.high]}


def _flat(values: Mapping[str, Spread]) -> dict[str, Any]:
    spread = {name: [value.low, value.high] for name, value in values.items()}
    return {**{name: value.median for name, value in values.items()}, "spread": spread}


def spread_text(value: float, spread: Sequence[float], form: str = ".3g") -> str:
    """A median with the smallest and the largest value."""
    low, high = spread
    return f"{value:{form}} ({low:.3g}-{high:.3g})"


def cell(figures: Mapping[str, Any], name: str, form: str = ".3g") -> str:
    """One figure of ``medians`` or ``ratios`` with its spread, as text."""
    return spread_text(figures[name], figures["spread"][name], form)


def ratio_text(found: Mapping[str, Any]) -> str:
    """All ratios of ``ratios``, as text."""
    return ", ".join(f"{name} {cell(found, name)}" for name in found["spread"])


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in fixed width, with the first column aligned left and the others right."""
    widths = [max(len(line[column]) for line in (headings, *rows)) for column in range(len(headings))]
    for line in (headings, *rows):
        first, *others = (text.rjust(width) for text, width in zip(line, widths, strict=True))
        yield "  ".join((first.lstrip().ljust(widths[0]), *others))


def slope_per_minute(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of (seconds, value), per minute; 0 for fewer than two points."""
    if len({seconds for seconds, _ in points}) < 2:
        return 0.0
    return 60 * statistics.linear_regression(*zip(*points, strict=True)).slope
