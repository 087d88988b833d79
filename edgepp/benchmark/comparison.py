"""Comparison of two reports, figure by figure: ratio, and whether the spreads overlap."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgepp.benchmark.machine import busy
from edgepp.benchmark.report import SCHEMA
from edgepp.errors import UsageError
from edgepp.safe_files import open_regular, read_whole

FILE = "report.json"
Verdict = Literal["better", "worse", "within the spread", "one round"]
_MAX_REPORT_BYTES = 16 << 20


@dataclass(frozen=True)
class Figure:
    """One figure of a report."""

    better: Literal["more", "less"]
    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A figure that both reports have."""

    name: str
    a: Figure
    b: Figure

    @property
    def ratio(self) -> float | None:
        """The second report's median divided by the first's; None where the first is 0."""
        return self.b.median / self.a.median if self.a.median else None

    @property
    def verdict(self) -> Verdict:
        """Verdict on the second figure."""
        if min(self.a.n, self.b.n) < 2:
            return "one round"
        if self.a.low <= self.b.high and self.b.low <= self.a.high:
            return "within the spread"
        return "better" if (self.b.median > self.a.median) is (self.a.better == "more") else "worse"


@dataclass(frozen=True)
class Comparison:
    """The second report against the first."""

    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unlike: tuple[str, ...]
    """Other differences between the reports, which may be the reason for different figures."""

    def count(self, verdict: Verdict) -> int:
        """Number of figures in both reports with this verdict."""
        return sum(one.verdict == verdict for one in self.differences)

    @property
    def verdict(self) -> Literal["better", "worse", "neither", "unknown"]:
        """Verdict on the second report: ``unknown`` where no figure in both reports has two rounds in each."""
        better, worse = self.count("better"), self.count("worse")
        if self.count("one round") == len(self.differences):
            return "unknown"
        return "better" if better > worse else "worse" if worse > better else "neither"

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON."""
        rows = [
            {"name": d.name, "a": d.a.median, "b": d.b.median, "ratio": d.ratio, "verdict": d.verdict}
            for d in self.differences
        ]
        return {
            "verdict": self.verdict,
            "rows": rows,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "unlike": self.unlike,
        }


def read(place: str) -> dict[str, Any]:
    """Read a report from ``place``, a file or the folder of a report.

    Raises:
        UsageError: there is no report of this version.
    """
    path = Path(place).expanduser()
    file = path / FILE if path.is_dir() else path
    try:
        with open_regular(file) as stream:
            report = json.loads(read_whole(stream, _MAX_REPORT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise UsageError(f"{file} cannot be read as a report: {reason}", "name a report.json, or its folder") from error
    if not isinstance(report, dict) or report.get("bench") != "edgepp" or report.get("schema") != SCHEMA:
        raise UsageError(
            f"{file} is not a report of `edgepp bench` in the format of this version", "name its report.json"
        )
    return report


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Compare report ``b`` with report ``a``.

    Raises:
        UsageError: a report's figures are malformed.
    """
    first, second = _figures(a), _figures(b)
    return Comparison(
        differences=tuple(Difference(name, first[name], second[name]) for name in first if name in second),
        only_a=tuple(name for name in first if name not in second),
        only_b=tuple(name for name in second if name not in first),
        unlike=tuple(_unlike(a, b)),
    )


def _figures(report: Mapping[str, Any]) -> dict[str, Figure]:
    try:
        return {str(one["name"]): _figure(one) for one in report["figures"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"a report has malformed figures: {error}", "measure again with `edgepp bench`") from error


def _figure(report: Mapping[str, Any]) -> Figure:
    better, median, low, high = report["better"], float(report["median"]), float(report["low"]), float(report["high"])
    rounds = int(report["n"])
    if better not in ("more", "less") or not 0 <= low <= median <= high < math.inf or rounds < 1:
        raise ValueError("a figure needs rounds, 0 <= low <= median <= high, and 'more' or 'less' as better")
    return Figure(better, median, low, high, rounds)


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Other differences, for people."""
    found = []
    for what, at in {
        "the model": ("target", "model"),
        "the stages": ("target", "stages"),
        "the machine's CPU": ("machine", "cpu"),
        "the libraries": ("machine", "libraries"),
        "edgepp": ("version",),
        "the commit": ("commit",),
        "the settings": ("settings",),
    }.items():
        one, other = (_at(report, at) for report in (a, b))
        if one != other:
            found.append(what if isinstance(one, dict | list) else f"{what} ({one}, {other})")
    for name, report in (("the first", a), ("the second", b)):
        if report.get("partial"):
            found.append(f"{name} is partial")
        if _was_busy(report):
            found.append(f"{name} is from a busy machine")
    return found


def _was_busy(report: Mapping[str, Any]) -> bool:
    load, cpus = _at(report, ("machine", "load_1m")), _at(report, ("machine", "cpus"))
    return isinstance(load, int | float) and isinstance(cpus, int) and busy({"load_1m": load, "cpus": cpus})


def _at(report: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """A value in nested objects; of stages only the planned fields, without the measured ones."""
    value: Any = report
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if names[-1] == "stages" and isinstance(value, list):
        return [
            {name: stage.get(name) for name in ("layers", "backend", "device")}
            for stage in value
            if isinstance(stage, dict)
        ]
    return value
