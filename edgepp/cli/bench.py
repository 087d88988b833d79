"""`edgepp bench`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from edgepp.cli.options import BACKENDS, MODEL_HELP, SPECULATE_HELP, given_as
from edgepp.cli.signals import stop_on_terminate
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.benchmark.measurement import BenchmarkSettings
    from edgepp.ui.bench import BenchmarkOptions


@dataclass(frozen=True)
class BenchArguments:
    """What `edgepp bench` is to measure, and where its report goes."""

    model: str | None = None
    """None for the live cluster."""
    stages: int | None = None
    threads: int | None = None
    backend: str | None = None
    speculate: str | None = None
    peer: str | None = None
    single: bool = False
    quick: bool = False
    rounds: int | None = None
    requests: str | None = None
    words: str | None = None
    out: str | None = None
    compare: tuple[str, str] | None = None
    as_json: bool = False

    def options(self) -> BenchmarkOptions:
        """What is to be measured.

        Raises:
            UsageError: an option goes with a pipeline on this machine only, or with a live cluster only.
        """
        from edgepp.ui.bench import BenchmarkOptions

        of_a_pipeline = {"--stages": self.stages, "--threads": self.threads, "--backend": self.backend}
        of_a_pipeline |= {"--speculate": self.speculate}
        given = [name for name, value in of_a_pipeline.items() if value is not None]
        if self.model is None and given:
            raise UsageError(f"{given[0]} goes with -m MODEL", "without -m the live cluster is measured, as it is")
        if self.model is not None and self.peer is not None:
            raise UsageError("-m and --peer exclude each other", "-m measures a pipeline on this machine")
        backend, speculate = self.backend or "auto", self.speculate or "off"
        return BenchmarkOptions(self.model, self.stages, self.threads, backend, speculate, self.peer, self.single)

    def settings(self) -> BenchmarkSettings:
        """How much is to be measured.

        Raises:
            UsageError: a list of numbers is none.
        """
        from edgepp.ui.bench import FULL, QUICK

        standard = QUICK if self.quick else FULL
        return replace(
            standard,
            rounds=self.rounds or standard.rounds,
            requests=_counts(self.requests, "requests at once", 256) or standard.requests,
            words=_counts(self.words, "words of a story", 100_000) or standard.words,
        )


@click.command()
@click.option("-m", "--model", metavar="MODEL", help=f"Measure a pipeline on this machine, no cluster. {MODEL_HELP}")
@click.option("--stages", type=click.IntRange(1), metavar="K", help="With -m: stage processes; else all in this one.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="With -m: compute threads per stage.")
@click.option("--backend", type=BACKENDS, help="With -m: what computes.  [default: auto]")
@click.option("--speculate", metavar="HOW", help=f"With -m. {SPECULATE_HELP}  [default: off]")
@click.option("--peer", metavar="HOST:PORT", help="Where `edgepp serve` runs, if the live cluster is not found.")
@click.option("--single", is_flag=True, help="Also the whole model in one process here, in turn: what do stages gain?")
@click.option("--quick", is_flag=True, help="Fewer and shorter answers: about a minute for a small model.")
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="Measured rounds.  [default: 3; 2 with --quick]")
@click.option("--requests", metavar="N,…", help="Requests at once.  [default: 1,2,4]")
@click.option("--words", metavar="N,…", help="Words of a story.  [default: 25,50,100,400,800; 25,100 with --quick]")
@click.option("--out", metavar="DIR", help="Folder for the report.  [default: ./edgepp-bench-<date>]")
@click.option("--compare", nargs=2, metavar="A B", help="Measure nothing: compare two reports (files or folders).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; files are written only with --out.")
@given_as(lambda: BenchArguments)
def bench(arguments: BenchArguments) -> None:
    """Measure the cluster, and write a report with the origin's figures beside.

    One request: decode and prefill token/s, time to the first token. Several at once: the table of Ollama's on an A100.
    Hidden states on a link: what compressing costs here, and from which rate on it pays. The report is report.md,
    report.json and, where matplotlib is installed, plots. Ctrl-C leaves a report of what was measured until then.

    \b
    The live cluster, from any of its machines:
        edgepp bench
    In a minute, with the same model on this machine alone beside it:
        edgepp bench --quick --single
    No cluster: two stage processes on this machine, against one:
        edgepp bench -m smollm2-135m --stages 2 --single --quick
    Is it faster than before?
        edgepp bench --out after && edgepp bench --compare before after
    """
    from edgepp.ui import bench as ui

    if arguments.compare is not None:
        ui.show_comparison(*arguments.compare, as_json=arguments.as_json)
        return
    options, settings = arguments.options(), arguments.settings()
    stop_on_terminate()
    ui.bench(options, settings, arguments.out, as_json=arguments.as_json)


def _counts(text: str | None, what: str, most: int) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= most for part in parts):
        raise UsageError(f"'{text}' are no numbers of {what}", "write them like 1,2,4")
    return tuple(sorted({int(part) for part in parts}))
