"""`edgepp bench`."""

from __future__ import annotations

import click

from edgepp.cli.options import BACKENDS, MODEL_HELP, SPECULATE_HELP, stop_on_terminate
from edgepp.errors import UsageError


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
def bench(
    model: str | None,
    stages: int | None,
    threads: int | None,
    backend: str | None,
    speculate: str | None,
    peer: str | None,
    rounds: int | None,
    requests: str | None,
    words: str | None,
    out: str | None,
    compare: tuple[str, str] | None,
    *,
    single: bool,
    quick: bool,
    as_json: bool,
) -> None:
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

    if compare is not None:
        ui.show_comparison(*compare, as_json=as_json)
        return
    of_a_pipeline = {"--stages": stages, "--threads": threads, "--backend": backend, "--speculate": speculate}
    given = [name for name, value in of_a_pipeline.items() if value is not None]
    if model is None and given:
        raise UsageError(f"{given[0]} goes with -m MODEL", "without -m the live cluster is measured, as it is")
    if model is not None and peer is not None:
        raise UsageError("-m and --peer exclude each other", "-m measures a pipeline on this machine")
    settings = ui.QUICK if quick else ui.FULL
    chosen = {
        "rounds": rounds,
        "requests": _counts(requests, "requests at once", 256),
        "words": _counts(words, "words of a story", 100_000),
    }
    stop_on_terminate()
    ui.bench(
        ui.BenchmarkOptions(model, stages, threads, backend or "auto", speculate or "off", peer, single),
        settings.changed(**{name: value for name, value in chosen.items() if value is not None}),
        out,
        as_json=as_json,
    )


def _counts(text: str | None, what: str, most: int) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= most for part in parts):
        raise UsageError(f"'{text}' are no numbers of {what}", "write them like 1,2,4")
    return tuple(sorted({int(part) for part in parts}))
