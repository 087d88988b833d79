"""Plots of a benchmark report: rates by number of requests, and time of a codec by rate of the link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepp.benchmark import baselines
from edgepp.benchmark.report import BenchmarkReport
from edgepp.ui.plan_plot import load_pyplot

_RATES = tuple(10 ** (exponent / 8) for exponent in range(8, 29))
"""Rates of the link in the plot, in Mbit/s: from 10 Mbit/s to 3 Gbit/s."""
_TICKS = (10, 30, 100, 300, 1000, 3000)
_COLOURS = {"none": "tab:grey", "lz4": "tab:blue", "zstd": "tab:orange"}


def draw(report: BenchmarkReport, folder: Path) -> list[Path]:
    """Write ``requests.png`` and ``links.png`` into ``folder``, each if ``report`` has data for it; returns paths.

    Raises:
        UsageError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    written = []
    for name, data, panel in (("requests.png", report.requests, _requests), ("links.png", report.codecs, _links)):
        if data:
            written.append(_written(pyplot, folder / name, report, panel))
    return written


def _written(pyplot: Any, file: Path, report: BenchmarkReport, panel: Callable[[Any, BenchmarkReport], None]) -> Path:
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    try:
        panel(axes, report)
        figure.savefig(file)
    finally:
        pyplot.close(figure)
    return file


def _requests(axes: Any, report: BenchmarkReport) -> None:
    """Total token rate by number of requests, as a multiple of one request's rate, so that hardware cancels out."""
    for words in sorted({row.words for row in report.requests if not row.text}):
        rows = [row for row in report.requests if row.words == words and not row.text]
        one = next((row.aggregate_tokens_per_s.median for row in rows if row.requests == 1), None)
        if one is None:
            continue
        rates = [row.aggregate_tokens_per_s for row in rows]
        medians = [rate.median / one for rate in rates]
        bars = [[(r.median - r.low) / one for r in rates], [(r.high - r.median) / one for r in rates]]
        counts = [row.requests for row in rows]
        line, *_ = axes.errorbar(counts, medians, yerr=bars, marker="o", capsize=3, label=f"{words} words")
        published = [count for count in counts if (count, words) in baselines.STORIES]
        if 1 in published:
            base = baselines.STORIES[1, words].tokens_per_s
            ratios = [count * baselines.STORIES[count, words].tokens_per_s / base for count in published]
            axes.plot(published, ratios, linestyle=":", marker="x", color=line.get_color())
    axes.set(
        title=f"{report.target.model}, {len(report.target.stages)} stages (dotted: {baselines.OLLAMA})",
        xlabel="requests at once",
        ylabel="token/s together, times one request's",
    )
    axes.set_xticks(sorted({row.requests for row in report.requests}))
    axes.legend()


def _links(axes: Any, report: BenchmarkReport) -> None:
    """Milliseconds of the largest matrix one way over a link, by rate of the link in Mbit/s."""
    rows = max(one.rows for one in report.codecs)
    for one in report.codecs:
        if one.rows == rows:
            # Noise hardly compresses, so its lines lie on that of "none": broad lines below narrow ones stay visible.
            drawn: dict[str, Any] = {"linewidth": 1.5} if one.data == "real" else {"linewidth": 5, "alpha": 0.35}
            if one.codec == "none":
                drawn |= {"linestyle": (0, (4, 4))}
            times = [one.total_ms(rate) for rate in _RATES]
            axes.plot(_RATES, times, color=_COLOURS[one.codec], label=f"{one.codec}, {one.data}", **drawn)
    width, dtype = report.codecs[0].width, report.codecs[0].dtype
    axes.set(title=f"({rows}, {width}) {dtype}, one way, no latency", xlabel="Mbit/s", ylabel="ms")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(_TICKS, [f"{tick:,}" for tick in _TICKS])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
