"""Output of `edgepp bench --history`: rates over runs, as a table with sparklines and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepp.benchmark.markdown_table import number
from edgepp.cluster.state_files import config_dir
from edgepp.errors import UsageError
from edgepp.plan.bench_history import HistoryEntry, as_json, read_entries, series
from edgepp.ui.plan_plot import load_pyplot
from edgepp.ui.screen import Rows, Screen, say, say_json

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = {"decode_tokens_per_s": "decode token/s", "prefill_tokens_per_s": "prefill token/s"}
_MOST_RUNS = 40
"""Number of latest runs in a table and in its sparklines."""


def show_history(model: str | None, out: str | None, *, as_json_object: bool) -> None:
    """Print the history, of ``model`` only if it is given, and draw it into the folder ``out``.

    Raises:
        UsageError: the history cannot be read, or with ``out`` the plot cannot be drawn.
    """
    entries = [entry for entry in read_entries(config_dir()) if model in (None, entry.model)]
    if as_json_object:
        say_json(as_json(entries))
    elif not entries:
        say("no run is kept yet: `edgepp bench` adds one")
    else:
        _show(entries)
    if out is not None and entries:
        for file in draw(entries, Path(out).expanduser()):
            say(f"plot: {file}", err=True)


def sparkline(values: Sequence[float]) -> str:
    """One character per value, a bar whose height is the value's place between the lowest and the highest value."""
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)


def _show(entries: Sequence[HistoryEntry]) -> None:
    console = Screen()
    for (model, shape, machine), runs in series(entries).items():
        table = Rows(f"{model}, {shape}", *(f">{name.upper()}" for name in _SHOWN.values()), "AT")
        for run in runs[-_MOST_RUNS:]:
            rates = (run.rates.get(name) for name in _SHOWN)
            cells = (f"{number(r.median)} ({number(r.low)}–{number(r.high)})" if r else "" for r in rates)
            table.add_row(run.label, *cells, f"{run.time}{', busy' if run.busy else ''}")
        console.show("", machine, table)
        for name, words in _SHOWN.items():
            if values := [run.rates[name].median for run in runs[-_MOST_RUNS:] if name in run.rates]:
                console.show(f"{words}: {sparkline(values)}  {number(min(values))} to {number(max(values))}")


def draw(entries: Sequence[HistoryEntry], folder: Path) -> list[Path]:
    """Draw rates over runs into ``history.svg`` and ``history.png``; one line per model, shape and machine.

    Raises:
        UsageError: matplotlib is not installed, or the files cannot be written.
    """
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(len(_SHOWN), 1, figsize=(9, 7), layout="constrained", sharex=True)
    labels = [entry.label for entry in entries]
    places = {id(entry): place for place, entry in enumerate(entries)}
    try:
        for axes, (name, words) in zip(panels, _SHOWN.items(), strict=True):
            for (model, shape, _), runs in series(entries).items():
                kept = [(places[id(run)], run.rates[name]) for run in runs if name in run.rates]
                bars = [[rate.median - rate.low for _, rate in kept], [rate.high - rate.median for _, rate in kept]]
                line = [rate.median for _, rate in kept]
                axes.errorbar([at for at, _ in kept], line, yerr=bars, marker="o", capsize=3, label=f"{model}, {shape}")
            axes.set(ylabel=words)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        panels[0].legend(fontsize=8)
        panels[-1].set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "history.svg", folder / "history.png"]
        for file in files:
            figure.savefig(file)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", "name another folder with --out") from error
    finally:
        pyplot.close(figure)
    return files
