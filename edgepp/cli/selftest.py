"""`edgepp selftest`: proof that this machine, or the cluster, is exact, fast and safe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgepp.cli.options import given_as
from edgepp.cli.signals import stop_on_terminate
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.ui.selftest import SelftestOptions


def _options() -> type[SelftestOptions]:
    from edgepp.ui.selftest import SelftestOptions

    return SelftestOptions


@click.command()
@click.option("--cluster", is_flag=True, help="Check the cluster of this machine, with all its nodes.")
@click.option("-m", "--model", metavar="MODEL", help="Model of the selftest's own cluster.  [default: smollm2-135m]")
@click.option(
    "--peer",
    metavar="HOST:PORT",
    help="With --cluster: address of `edgepp serve`, like 10.0.0.2:5700, if it is not found.",
)
@click.option("--only", metavar="NAME", multiple=True, help="Run only this check, like exact; may be given again.")
@click.option(
    "--report", metavar="FOLDER", help="Write selftest.json and selftest.md into FOLDER, without personal names."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@given_as(_options)
def selftest(options: SelftestOptions) -> None:
    """Check that a machine or cluster is exact, fast, safe.

    Each line begins with ok, with !! for a failure, or with -- for what did not apply; brackets show the figure and its
    limit, and an arrow gives the next step after a failure. The exit status is 1 if a check failed. Ctrl-C ends the
    selftest and the processes that it started; the report then has the checks that were done. The selftest takes three
    to five minutes; the speeds are right only if the machine does nothing else.

    \b
    hops        time into each stage, rate of each link, as measured
    exact       greedy tokens in float32 against mlx-lm: for the layers of each stage, and the pipeline
    accuracy    perplexity of default accuracy against float32, over a text that edgepp ships
    speed       decode and prefill, against one process here
    plan        decode, against the prediction of `edgepp plan`: at most twice as fast or as slow
    kill        a stage process killed in mid-answer: right tokens, and the pause
    sleep       a node stopped in mid-answer and woken after it
    drain       with --cluster: a node drained in mid-answer, and let back
    encryption  a question through a relay that reads along, and what each port offers

    Without --cluster all checks run on a cluster of two nodes that the selftest starts here, on loopback and with keys
    of its own. With --cluster the checks run on the real cluster; only kill, sleep and the relay still use a cluster
    that the selftest starts here, so that no stage of others is harmed. The real cluster is held to mlx-lm's tokens
    only where it runs with `edgepp serve --exact`.

    \b
        edgepp selftest
        edgepp selftest --cluster --report for-edgepp
        edgepp selftest --only exact --only kill
    """
    from edgepp.ui import selftest as ui

    if options.peer is not None and not options.cluster:
        raise UsageError("--peer needs --cluster", "add --cluster, or leave --peer out")
    stop_on_terminate()
    if not ui.selftest(options):
        raise SystemExit(1)
