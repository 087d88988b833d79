"""`edgepp bench`: the options of a measurement and of its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from edgepp.cli.options import (
    BACKENDS,
    MODEL_HELP,
    SPECULATE_HELP,
    Counts,
    Parsed,
    SectionedCommand,
    complete_models,
    given_as,
)
from edgepp.cli.signals import stop_on_terminate
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.benchmark.measurement import BenchmarkSettings
    from edgepp.ui.bench import BenchmarkOptions


@dataclass(frozen=True)
class BenchArguments:
    """Options of `edgepp bench`: the target, the extent of the measurement, and the folder of the report."""

    model: str | None = None
    """None for the cluster of this machine."""
    stages: int | None = None
    threads: int | None = None
    backend: str | None = None
    speculate: str | None = None
    peer: str | None = None
    single: bool = False
    layouts: tuple[tuple[int, int], ...] | None = None
    """Pairs of a number of stages and of processes per stage."""
    quick: bool = False
    rounds: int | None = None
    requests: tuple[int, ...] | None = None
    """Numbers of simultaneous requests."""
    words: tuple[int, ...] | None = None
    """Numbers of words that an answer is to have."""
    out: str | None = None
    """Folder of the report, or of the plot of --history."""
    compare: tuple[str, str] | None = None
    """Two reports, each as a file or folder."""
    history: bool = False
    as_json: bool = False

    def options(self) -> BenchmarkOptions:
        """The target of the measurement.

        Raises:
            UsageError: an option needs a pipeline on this machine, or -m and --peer are both given.
        """
        from edgepp.ui.bench import BenchmarkOptions

        local_options: dict[str, object] = {
            "--stages": self.stages,
            "--threads": self.threads,
            "--backend": self.backend,
        }
        local_options |= {"--speculate": self.speculate, "--layouts": self.layouts}
        given = [name for name, value in local_options.items() if value is not None]
        if self.model is None and given:
            raise UsageError(
                f"{given[0]} needs -m MODEL", "without -m the cluster is measured as it runs: leave the option out"
            )
        if self.model is not None and self.peer is not None:
            raise UsageError(
                "-m and --peer exclude each other", "-m measures a pipeline on this machine: leave one of them out"
            )
        backend, speculate = self.backend or "auto", self.speculate or "off"
        layouts = tuple(layout for layout in self.layouts or () if layout != (self.stages, 1))
        return BenchmarkOptions(
            self.model, self.stages, self.threads, backend, speculate, self.peer, self.single, layouts
        )

    def settings(self) -> BenchmarkSettings:
        """The extent of the measurement: rounds, and numbers of requests and of words."""
        from edgepp.benchmark.measurement import FULL, QUICK

        standard = QUICK if self.quick else FULL
        return replace(
            standard,
            rounds=self.rounds or standard.rounds,
            requests=self.requests or standard.requests,
            words=self.words or standard.words,
        )


def _layouts() -> Callable[[str], object]:
    from edgepp.benchmark.origin_table import parse_layouts

    return parse_layouts


@click.command(
    cls=SectionedCommand,
    sections={
        "What to measure": ("peer", "single", "quick", "rounds", "requests", "words"),
        "A pipeline on this machine": ("model", "stages", "layouts", "threads", "backend", "speculate"),
        "Report": ("out", "compare", "history"),
    },
)
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    shell_complete=complete_models,
    help=f"Measure a pipeline on this machine, not the cluster. {MODEL_HELP}",
)
@click.option(
    "--stages",
    type=click.IntRange(1),
    metavar="K",
    help="Stage processes of the pipeline.  [default: none, all in this process]",
)
@click.option(
    "--layouts",
    type=Parsed("layouts", _layouts),
    metavar="PPxTP,…",
    help="Measure one request also over PP stages of TP processes each, such as 2x1,2x2, as in the origin's table.",
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Compute threads per stage.  [default: all cores, shared]"
)
@click.option("--backend", type=BACKENDS, help="Library that computes.  [default: auto]")
@click.option("--speculate", metavar="HOW", help=f"{SPECULATE_HELP}  [default: off]")
@click.option("--peer", metavar="HOST:PORT", help="Address of `edgepp serve`, like 10.0.0.2:5700, if it is not found.")
@click.option("--single", is_flag=True, help="Also measure the whole model in one process here, and print the ratio.")
@click.option(
    "--quick", is_flag=True, help="Fewer rounds, shorter prompts and answers: about a minute for a small model."
)
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="Measured rounds.  [default: 3; 2 with --quick]")
@click.option(
    "--requests",
    type=Counts("simultaneous requests", 256),
    metavar="N,…",
    help="Numbers of simultaneous requests.  [default: 1,2,4]",
)
@click.option(
    "--words",
    type=Counts("words per answer", 100_000),
    metavar="N,…",
    help="Words that an answer is to have.  [default: 25,50,100,400,800; 25,100 with --quick]",
)
@click.option("--out", metavar="DIR", help="Folder for the report.  [default: ./edgepp-bench-<date>]")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two reports (files or folders) instead of measuring.")
@click.option("--history", is_flag=True, help="Show the rates of former runs, of all or of -m MODEL; --out draws them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; write files only with --out.")
@given_as(lambda: BenchArguments)
def bench(arguments: BenchArguments) -> None:
    """Measure speed, and write a report with published figures.

    Measured are: one request (prefill and decode tokens per second, time to the first token); several simultaneous
    requests, as in published measurements of Ollama on an A100; and the codecs of links. The report consists of
    report.md, report.json and, with matplotlib, plots. Ctrl-C leaves a report of what was measured so far. The rates of
    each complete run are kept on this machine for --history.

    \b
    The cluster, from any of its machines:
        edgepp bench
    In a minute, compared with one process on this machine:
        edgepp bench --quick --single
    Without a cluster, two stage processes against one process:
        edgepp bench -m smollm2-135m --stages 2 --single --quick
    The rows of the origin's table, all on this machine:
        edgepp bench -m llama-3.2-1b-4bit --quick --single --stages 2 --layouts 2x2 --threads 1
    Before and after a change:
        edgepp bench --out before
        edgepp bench --out after
        edgepp bench --compare before after
    Over commits and versions, with a plot in a folder:
        edgepp bench --history --out plots
    """
    if arguments.compare is not None:
        from edgepp.ui.bench_comparison import show_comparison

        show_comparison(*arguments.compare, as_json=arguments.as_json)
        return
    if arguments.history:
        from edgepp.ui.bench_history import show_history

        show_history(arguments.model, arguments.out, as_json_object=arguments.as_json)
        return
    from edgepp.ui import bench as ui

    options, settings = arguments.options(), arguments.settings()
    stop_on_terminate()
    ui.bench(options, settings, arguments.out, as_json=arguments.as_json)
