"""`edgepp serve` and `edgepp join`: the commands that run until they are stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edgepp.cli.options import (
    ADDRESS,
    ALLOW_SLEEP_HELP,
    BACKENDS,
    BYTES,
    KV_BITS,
    KV_BITS_HELP,
    LAYERS,
    MODEL_HELP,
    SPECULATE_HELP,
    TENSOR,
    TENSOR_HELP,
    TOGETHER_HELP,
    TRACED,
    SectionedCommand,
    complete_models,
    given_as,
    logging_options,
)
from edgepp.cli.signals import stop_on_terminate
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.coordinator.composition_root import ServeOptions
    from edgepp.http_api.http_options import HttpOptions
    from edgepp.python_api.joining import JoinOptions


def _serve_options() -> type[ServeOptions]:
    from edgepp.coordinator.composition_root import ServeOptions

    return ServeOptions


def _http_options() -> type[HttpOptions]:
    from edgepp.http_api.http_options import HttpOptions

    return HttpOptions


@click.command(
    cls=SectionedCommand,
    sections={
        "Cluster": (
            "model",
            "listen",
            "policy",
            "context",
            "max_sequences",
            "exact",
            "kv_bits",
            "speculate",
            "speculate_together",
            "keep_copies",
            "trace_requests",
            "trace",
        ),
        "This machine": ("stages", "tensor", "no_stage", "pinned", "memory", "backend", "threads", "allow_sleep"),
        "HTTP": ("http", "lan", "require_key", "aliases", "allow_origins", "allow_hosts"),
    },
)
@click.option("-m", "--model", shell_complete=complete_models, help=MODEL_HELP + "  [default: smollm2-135m]")
@click.option(
    "--listen",
    type=ADDRESS,
    metavar="HOST:PORT",
    help="Address to listen on; invitations use the next port.  [default: every address, port 5700]",
)
@click.option(
    "--stages",
    type=int,
    metavar="K",
    help="Run K stage processes here, to try a pipeline on one machine.  [default: 1]",
)
@click.option("--tensor", type=TENSOR, metavar="T|A:B[:…]", help=TENSOR_HELP)
@click.option("--no-stage", is_flag=True, help="Coordinate only: run no layers on this machine.")
@click.option(
    "--layers",
    "pinned",
    type=LAYERS,
    metavar="A-B",
    help="First and last layer of this machine, like 0-14.  [default: planned]",
)
@click.option(
    "--memory",
    type=BYTES,
    metavar="SIZE",
    help="Memory limit of the model on this machine, like 8GB.  [default: all free memory]",
)
@click.option(
    "--policy",
    type=click.Choice(["memory", "speed", "throughput"]),
    help="Place layers in proportion to memory (memory), for the fastest single answer (speed), or for most tokens per"
    " second of many answers (throughput).  [default: memory]",
)
@click.option(
    "--context", type=int, metavar="TOKENS", help="Longest conversation to reserve memory for.  [default: 4096]"
)
@click.option("--max-sequences", type=int, metavar="N", help="Conversations of that length at a time.  [default: 2]")
@click.option("--backend", type=BACKENDS, help="Library that computes here.  [default: auto]")
@click.option("--threads", type=int, metavar="N", help="Compute threads here.  [default: all cores]")
@click.option(
    "--exact", is_flag=True, help="Float32 arithmetic on every node, so that tokens do not depend on the plan; slower."
)
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP)
@click.option("--speculate", metavar="HOW", help=SPECULATE_HELP + "  [default: lookup]")
@click.option("--speculate-together", is_flag=True, help=TOGETHER_HELP)
@click.option(
    "--keep-copies",
    type=click.IntRange(0, 1),
    metavar="N",
    help="Copies of each stage's keys and values on another node, 0 or 1: answers then survive a lost node bit for bit"
    " and without computing anything again, for twice the memory of conversations.  [default: 0]",
)
@click.option("--allow-sleep", is_flag=True, help=ALLOW_SLEEP_HELP)
@click.option(
    "--trace-requests",
    type=TRACED,
    metavar="last:N|off",
    help="Keep what coordinator and stages did for the newest N requests, and when; see `edgepp trace`."
    "  [default: last:20]",
)
@click.option(
    "--trace",
    metavar="FILE",
    help="When serving ends, write the kept traces to FILE, for https://ui.perfetto.dev.",
)
@click.option(
    "--http",
    metavar="HOST:PORT|off",
    help="Address of the HTTP server for clients of OpenAI, Anthropic and Ollama, or off. :PORT is on loopback; HOST"
    " alone takes the first free port from 11434.  [default: loopback, the first free port from 11434]",
)
@click.option(
    "--lan",
    is_flag=True,
    help="Answer HTTP clients on all addresses. An API key is demanded, and made if there is none.",
)
@click.option("--require-key", is_flag=True, help="Demand an API key on loopback too; see `edgepp keys`.")
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME", help="Another name of the model; may be given again."
)
@click.option(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin use the API, like https://chat.example, null or *; may be given again.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME",
    help="Answer under this host name too, such as that of a proxy; may be given again.",
)
@logging_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line: listening, note, ready.")
@given_as(_serve_options, _http_options)
def serve(options: ServeOptions, http: HttpOptions, *, trace: str | None, no_stage: bool, as_json: bool) -> None:
    """Start a cluster: coordinate it, and run layers here.

    The first run makes this machine a coordinator. `edgepp invite` then prints a code for another machine, and the
    layers are spread again when a machine joins or leaves.

    Ctrl-C stops the coordinator; the next `edgepp serve` continues with the same cluster. `edgepp leave` ends it.

    \b
    Only coordinate, and let other machines run the layers:
        edgepp serve -m llama-3.2-3b-4bit --no-stage
    """
    from edgepp.http_api.server import HttpServer
    from edgepp.python_api import ServedCluster
    from edgepp.ui.serve import run

    if no_stage:
        if click.get_current_context().get_parameter_source("stages") is not ParameterSource.DEFAULT:
            raise UsageError("--stages and --no-stage exclude each other", "leave one of them out")
        options = replace(options, stages=0)
    if trace is not None and not options.trace_requests:
        raise UsageError("--trace writes the traces that are kept, and --trace-requests off keeps none", "drop one")
    stop_on_terminate()
    cluster = ServedCluster(options)
    file = Path(trace) if trace is not None else None
    run(cluster, HttpServer(cluster, http) if http.on else None, file, as_json=as_json)


def _join_options() -> type[JoinOptions]:
    from edgepp.python_api.joining import JoinOptions

    return JoinOptions


@click.command(
    cls=SectionedCommand,
    sections={
        "Cluster": ("peers", "replace"),
        "This machine": ("layers", "tensor", "draft", "memory", "listen", "backend", "threads", "allow_sleep"),
        "One stage outside of a cluster": ("model", "exact", "kv_bits", "insecure"),
    },
)
@click.argument("code", required=False)
@click.option(
    "--layers",
    type=LAYERS,
    metavar="A-B",
    help="First and last layer to run, like 0-14.  [default: as planned by the coordinator]",
)
@click.option(
    "--memory",
    type=BYTES,
    metavar="SIZE",
    help="Memory limit of the model on this machine, like 8GB.  [default: all free memory]",
)
@click.option(
    "--peer",
    "peers",
    type=ADDRESS,
    multiple=True,
    metavar="HOST:PORT",
    help="Address of `edgepp serve`, like 10.0.0.2:5700, if it is not found; may be given again.",
)
@click.option("--backend", type=BACKENDS, help="Library that computes.  [default: auto]")
@click.option("--threads", type=int, metavar="N", help="Compute threads.  [default: all cores]")
@click.option("--exact", is_flag=True, help="Float32 arithmetic. In a cluster `edgepp serve --exact` decides.")
@click.option(
    "--listen",
    type=ADDRESS,
    metavar="HOST:PORT",
    help="Address to listen on, at PORT and the next one.  [default: every address, free ports; with -m loopback]",
)
@click.option(
    "--tensor",
    type=click.IntRange(1, 16),
    metavar="T",
    help="Share each layer with other machines that join with the same T and --layers, T machines in all: one answer"
    " becomes faster if the network between them is quick. The coordinator decides the shares.",
)
@click.option(
    "--draft",
    metavar="MODEL",
    help="Run no layers, and guess tokens for the cluster with this small model, of the same family as the cluster's.",
)
@click.option("--allow-sleep", is_flag=True, help=ALLOW_SLEEP_HELP)
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP + " In a cluster `edgepp serve --kv-bits` decides.")
@click.option("--replace", is_flag=True, help="Leave the present cluster for that of CODE or of the token.")
@click.option(
    "-m",
    "--model",
    shell_complete=complete_models,
    help="Run the stage given by --layers, outside of any cluster. " + MODEL_HELP,
)
@click.option(
    "--insecure", is_flag=True, help="Allow an address that other machines can reach. Nothing is encrypted or checked."
)
@logging_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line; with -m one when ready.")
@given_as(_join_options)
def join(options: JoinOptions, *, as_json: bool) -> None:
    """Join a cluster, and run layers of its model here.

    CODE is printed by `edgepp invite` on the machine of `edgepp serve`, and is needed once: afterwards `edgepp join`
    alone starts the node again. With a token (see `edgepp token`) no code is needed.

    Ctrl-C stops the node as soon as other nodes have its layers, after 20 s at most; Ctrl-C again stops it at once. The
    machine still belongs to the cluster. `edgepp leave` leaves the cluster for good.

    \b
    The first time, and any later time:
        edgepp join 7-tango-lemon
        edgepp join
    A machine that is too weak for layers, or to spare, guesses tokens with a small model:
        edgepp join --draft smollm2-135m
    Two machines that compute each layer together, the same command on both:
        edgepp join --layers 0-7 --tensor 2
    One stage outside of any cluster, for `edgepp chat --peer`:
        edgepp join -m smollm2-135m --layers 0-14
    """
    from edgepp.python_api import JoinedNode, LoneStage
    from edgepp.ui import join as ui

    stop_on_terminate()
    if options.model is not None:
        ui.run_stage(LoneStage(options.lone_stage()), as_json=as_json)
    else:
        ui.run_member(JoinedNode(options.member()), as_json=as_json)
