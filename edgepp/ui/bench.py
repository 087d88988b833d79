"""Output of `edgepp bench`: progress, the report at the end, and the comparison of two reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edgepp import __version__
from edgepp.benchmark.comparison import FILE
from edgepp.benchmark.history_entry import entry
from edgepp.benchmark.machine import commit, machine
from edgepp.benchmark.markdown import markdown
from edgepp.benchmark.markdown_table import number, spread
from edgepp.benchmark.measurement import FULL, QUICK, BenchmarkSettings, Measurement, ReportProgress
from edgepp.benchmark.origin_table import layout_name
from edgepp.benchmark.report import NAMES, BenchmarkReport, MeasuredTarget
from edgepp.benchmark.target import cluster, local
from edgepp.benchmark.workload import Askable, FreshOwners
from edgepp.cluster.state_files import config_dir
from edgepp.errors import EdgeppError, PairingError, UsageError
from edgepp.plan.bench_history import append_entry
from edgepp.python_api import Engine, connect
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.ui import bench_plot
from edgepp.ui.progress import ByteProgress
from edgepp.ui.screen import Rows, Screen, say

__all__ = ["FULL", "QUICK", "BenchmarkOptions", "bench"]


@dataclass(frozen=True)
class BenchmarkOptions:
    """Target of `edgepp bench`: a local pipeline of ``model``, or the live cluster if ``model`` is None."""

    model: str | None
    stages: int | None
    """Stage processes; None for all layers in this process."""
    threads: int | None
    """Compute threads per stage; None for all cores, shared."""
    backend: str
    speculate: str
    peer: str | None
    """``HOST:PORT`` of `edgepp serve`; None to search for it on the network."""
    single: bool
    """Whether the whole model in one process on this machine is measured too."""
    layouts: tuple[tuple[int, int], ...] = ()
    """Numbers of stages, and of processes per stage, of other pipelines over which one request is measured too."""


def bench(options: BenchmarkOptions, settings: BenchmarkSettings, out: str | None, *, as_json: bool) -> None:
    """Measure and write the report. After Ctrl-C or a failed answer the report is marked as partial.

    ``out`` is the folder of the report; None for a new folder named by the date, or with ``as_json`` for no files.

    Raises:
        UsageError: the folder cannot be made, or has a report already.
        EdgeppError: the target cannot be opened, or the measurement ended early.
    """
    folder = None if as_json and out is None else _folder(out)
    found: list[BenchmarkReport] = []
    try:
        with _progress() as report_progress:
            asyncio.run(_measure(options, settings, found, report_progress))
    except (KeyboardInterrupt, EdgeppError) as error:
        if found and found[0].single is not None:
            found[0].partial = str(error) if isinstance(error, EdgeppError) else "it was stopped by Ctrl-C"
            _deliver(found[0], folder, as_json=as_json)
        elif folder is not None:
            with suppress(OSError):  # the folder has other files
                folder.rmdir()
        raise
    _deliver(found[0], folder, as_json=as_json)


async def _measure(
    options: BenchmarkOptions,
    settings: BenchmarkSettings,
    found: list[BenchmarkReport],
    report_progress: ReportProgress,
) -> None:
    async with AsyncExitStack() as stack:
        model, target, askable = await _open(options, stack)
        alone: Askable | None = None
        if options.single:
            threads = options.threads
            if options.model is not None:  # as many threads as each stage, so that only the number of stages differs
                threads = ComputePolicy.shared(threads, options.stages or 1).threads
            one = Engine(model, stages=1, threads=threads, backend=options.backend, speculate="off")
            alone = await _opened(one, stack)
        layouts = {layout_name(*layout): await _open_layout(options, *layout, stack) for layout in options.layouts}
        report = BenchmarkReport(
            began=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
            settings=asdict(settings)
            | {"single": options.single, "threads": options.threads, "layouts": list(layouts)},
            target=target,
            version=__version__,
            commit=commit(),
            machine=machine(),
        )
        found.append(report)
        await Measurement(model, settings, report, report_progress).run(askable, alone, layouts)


async def _open(options: BenchmarkOptions, stack: AsyncExitStack) -> tuple[str, MeasuredTarget, Askable]:
    if options.model is None:
        try:
            connection = await stack.enter_async_context(connect(options.peer))
        except PairingError as error:
            error.hint = f"measure this machine with `edgepp bench -m smollm2-135m --stages 2`; or {error.hint}"
            raise
        return connection.model, cluster(connection.status), connection
    engine = Engine(
        options.model,
        stages=options.stages,
        threads=options.threads,
        backend=options.backend,
        speculate=options.speculate,
    )
    askable = await _opened(engine, stack)
    return options.model, local(options.model, engine.stages), askable


async def _open_layout(options: BenchmarkOptions, stages: int, ranks: int, stack: AsyncExitStack) -> Askable:
    engine = Engine(
        options.model or "",
        stages=stages,
        tensor=ranks,
        threads=options.threads,
        backend=options.backend,
        speculate=options.speculate,
    )
    return await _opened(engine, stack)


async def _opened(engine: Engine, stack: AsyncExitStack) -> Askable:
    stack.push_async_callback(engine.close)
    with ByteProgress() as progress:
        await engine.open(progress)
    return FreshOwners(engine)


@contextmanager
def _progress() -> Iterator[ReportProgress]:
    """Progress of the measurement on standard error: a bar on a terminal, else one line per step."""
    console = Screen(stderr=True)
    if not console.is_terminal:
        yield lambda done, total, what: say(f"{done + 1}/{total} {what}", err=True)
        return
    columns = (
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = None

        def report_progress(done: int, total: int, what: str) -> None:
            nonlocal task
            task = bars.add_task(what, total=total) if task is None else task
            bars.update(task, completed=done, total=total, description=what)

        yield report_progress


def _folder(out: str | None) -> Path:
    """Folder of the report, made before the measurement.

    Raises:
        UsageError: the folder cannot be made, or has a report already.
    """
    folder = Path(out).expanduser() if out else Path(f"edgepp-bench-{datetime.now().strftime('%Y-%m-%d-%H%M%S')}")
    if (folder / FILE).exists():
        raise UsageError(f"{folder} has a report already", "name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made: {error.strerror}", "name another folder with --out"
        ) from error
    return folder


def _deliver(report: BenchmarkReport, folder: Path | None, *, as_json: bool) -> None:
    _keep(report)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        _show(report)
    if folder is None:
        return
    (folder / FILE).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    pictures: list[str] = []
    try:
        pictures = [path.name for path in bench_plot.draw(report, folder)]
    except UsageError as error:
        say(f"no plots, since matplotlib is not installed: {error.hint}", err=True)
    (folder / "report.md").write_text(markdown(report, pictures), encoding="utf-8")
    files = [str(folder / "report.md"), FILE, *pictures]
    say(f"{'partial report' if report.partial else 'report'}: {', '.join(files)}", err=True)


def _keep(report: BenchmarkReport) -> None:
    """Add a complete report to the history; a report that cannot be added is delivered all the same."""
    kept = None if report.partial else entry(report)
    if kept is None:
        return
    try:
        append_entry(config_dir(), kept)
    except UsageError as error:
        say(f"not kept for `edgepp bench --history`: {error}; {error.hint}", err=True)


def _show(report: BenchmarkReport) -> None:
    """Print a summary of the figures."""
    console = Screen()
    if report.single is not None:
        sides = [report.single] + ([report.alone] if report.alone is not None else [])
        stages = len(report.target.stages)
        sizes = [f">{stages} STAGE{'S' if stages != 1 else ''}", ">ONE PROCESS"][: len(sides)]
        sides += report.layouts.values()
        sizes += [f">{name}" for name in report.layouts]
        table = Rows(f"{report.target.model}, ONE REQUEST", *sizes)
        for name, words in NAMES.items():
            table.add_row(words, *(spread(getattr(side, name)) for side in sides))
        console.show(table)
    if report.requests:
        table = Rows(">REQUESTS", "ASKED FOR", ">TOKENS", ">TIME S", ">TOKEN/S EACH", ">TOGETHER", ">TTFT P50 S")
        for row in report.requests:
            table.add_row(
                str(row.requests), "a title" if row.text else f"{row.words} words", f"{row.tokens:g}",
                spread(row.time_s), spread(row.tokens_per_s), spread(row.aggregate_tokens_per_s),
                number(row.ttft_p50_s),
            )  # fmt: skip
        console.show("", table)
    pays = [one for one in report.codecs if one.codec != "none" and one.rows == max(c.rows for c in report.codecs)]
    for one in pays:
        below = f"below {number(one.pays_below_mbit_per_s)} Mbit/s" if one.pays_below_mbit_per_s else "on no link"
        console.show(f"{one.codec} pays {below} for {one.rows} rows ({one.data}).")
