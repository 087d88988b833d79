"""`edgepp serve` and `edgepp join`: the commands that run until they are stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edgepp.cli.options import (
    ADDRESS,
    BACKENDS,
    BYTES,
    KV_BITS,
    KV_BITS_HELP,
    LAYERS,
    MODEL_HELP,
    SPECULATE_HELP,
    given_as,
)
from edgepp.cli.signals import stop_on_terminate
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.api.joining import JoinOptions
    from edgepp.coordinator.composition import ServeOptions


def _serve_options() -> type[ServeOptions]:
    from edgepp.coordinator.composition import ServeOptions

    return ServeOptions


@click.command()
@click.option("-m", "--model", help=MODEL_HELP + "  [default: smollm2-135m]")
@click.option(
    "--listen",
    type=ADDRESS,
    metavar="HOST:PORT",
    help="Where nodes and chats reach this; every address, port 5700 unless given. The next port is for invitations.",
)
@click.option("--stages", type=int, metavar="K", help="Run K stage processes here, for a try-out on one machine.")
@click.option("--no-stage", is_flag=True, help="Coordinate only: this machine holds no layers.")
@click.option(
    "--layers", "pinned", type=LAYERS, metavar="A-B", help="Pin this machine's range; the rest is fitted around it."
)
@click.option(
    "--memory", type=BYTES, metavar="SIZE", help="The most that the model may use here, like 8GB; all that is free."
)
@click.option(
    "--policy",
    type=click.Choice(["memory", "speed", "throughput"]),
    help="Layers in proportion to memory; for the fastest single answer; for the least slow stage.  [default: memory]",
)
@click.option("--context", type=int, help="Positions of a conversation to plan for.  [default: 4096]")
@click.option("--max-sequences", type=int, help="Conversations at a time to plan for.  [default: 2]")
@click.option("--backend", type=BACKENDS, help="What computes here.")
@click.option("--threads", type=int, metavar="N", help="Compute threads here; all cores unless given.")
@click.option(
    "--exact", is_flag=True, help="Float32 arithmetic on every node, so that tokens do not depend on the split."
)
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP)
@click.option("--speculate", metavar="HOW", help=SPECULATE_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line: listening, note, ready.")
@given_as(_serve_options)
def serve(options: ServeOptions, *, no_stage: bool, as_json: bool) -> None:
    """Run a cluster from here: this machine's own part, and the place that others join.

    Ctrl-C stops it; the cluster stays, and goes on when this is run again. `edgepp leave` here ends the cluster.
    """
    from edgepp.api import ServedCluster
    from edgepp.ui.serve import run

    if no_stage:
        if click.get_current_context().get_parameter_source("stages") is not ParameterSource.DEFAULT:
            raise UsageError("--stages and --no-stage exclude each other")
        options = replace(options, stages=0)
    stop_on_terminate()
    run(ServedCluster(options), as_json=as_json)


def _join_options() -> type[JoinOptions]:
    from edgepp.api.joining import JoinOptions

    return JoinOptions


@click.command()
@click.argument("code", required=False)
@click.option(
    "--layers",
    type=LAYERS,
    metavar="A-B",
    help="Pin the first and last layer to run, like 0-14; by memory unless given.",
)
@click.option(
    "--memory", type=BYTES, metavar="SIZE", help="The most that the model may use here, like 8GB; all that is free."
)
@click.option(
    "--peer",
    "peers",
    type=ADDRESS,
    multiple=True,
    metavar="HOST:PORT",
    help="Where `edgepp serve` runs, if it is not found.",
)
@click.option("--backend", type=BACKENDS, help="What computes.")
@click.option("--threads", type=int, metavar="N", help="Compute threads; all cores unless given.")
@click.option("--exact", is_flag=True, help="With -m: float32 arithmetic. In a cluster `edgepp serve --exact` decides.")
@click.option(
    "--listen",
    type=ADDRESS,
    metavar="HOST:PORT",
    help="Where other nodes reach this stage; uses PORT and the one after it. In a cluster: any address and free port.",
)
@click.option("--kv-bits", type=KV_BITS, help="With -m: " + KV_BITS_HELP + " In a cluster `serve --kv-bits` decides.")
@click.option("--replace", is_flag=True, help="Belong to the cluster of CODE or token instead of the present one.")
@click.option("-m", "--model", help="With --layers: run one stage by hand, outside of any cluster. " + MODEL_HELP)
@click.option(
    "--insecure", is_flag=True, help="With -m: allow an address that others can reach, with nothing encrypted."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready, or one a line in a cluster.")
@given_as(_join_options)
def join(options: JoinOptions, *, as_json: bool) -> None:
    """Make this machine a node, until Ctrl-C.

    CODE is what `edgepp invite` printed; once paired, `edgepp join` alone is enough. With EDGEPP_TOKEN or a token file
    (see `edgepp token`) no code is needed.

    Ctrl-C stops the node; the machine still belongs to the cluster. `edgepp leave` ends it for good.

    \b
    A stage by hand, for `edgepp chat --peer`:
        edgepp join -m smollm2-135m --layers 0-14
    """
    from edgepp.api import JoinedNode, LoneStage
    from edgepp.ui import join as ui

    stop_on_terminate()
    if options.model is not None:
        ui.run_stage(LoneStage(options.lone_stage()), as_json=as_json)
    else:
        ui.run_member(JoinedNode(options.member()), as_json=as_json)
