"""`edgepp plan`: its options, and the choice between a cluster and slices of a chip."""

from __future__ import annotations

import click

from edgepp.cli.options import KV_BITS, KV_BITS_HELP, Counts, complete_models, given_as
from edgepp.cli.plan_arguments import ClusterArguments, PlanArguments, SliceArguments
from edgepp.errors import UsageError

_MAX_REQUESTS = 10_000


@click.command()
@click.argument("model", required=False, shell_complete=complete_models)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="KEY=VALUE,…",
    help="A machine: mem=16GB, hw=m4-pro, name=, bw=100GB/s, flops=3.6T, usable=0.75, layers=A-B. May be given again.",
)
@click.option(
    "--link",
    "links",
    multiple=True,
    metavar="[A,B=]RATE[:LATENCY]",
    help="All links, or the link of A and B: 1Gbit:0.3ms.",
)
@click.option("--file", "file", metavar="FILE", help="A TOML file that describes the cluster.")
@click.option(
    "--slices",
    metavar="CHIP[:SLICE]",
    help="Plan for slices of an accelerator chip, like v5e, or for one slice, like v5e:4x8.",
)
@click.option(
    "--dtype",
    "dtypes",
    metavar="LIST",
    help="Precisions for --slices, bf16,int8,int4 by default; arithmetic is in bf16, or in int8 with int8:int8.",
)
@click.option(
    "--peer",
    metavar="HOST:PORT",
    help="Address of `edgepp serve`, like 10.0.0.2:5700, if the live cluster is not found.",
)
@click.option("--context", type=int, help="Positions (tokens) per conversation.  [default: 4096]")
@click.option("--max-sequences", type=int, help="Conversations at the same time.  [default: 2]")
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP)
@click.option("--prompt", type=int, help="Tokens of a prompt.  [default: 512]")
@click.option("--answer", type=int, help="Tokens of an answer.  [default: 256]")
@click.option(
    "--requests",
    type=Counts("requests", _MAX_REQUESTS),
    metavar="N,…",
    help="Numbers of requests at the same time to predict; 1 is always shown.  [default: 1,2,4,8,16]",
)
@click.option(
    "--policy",
    type=click.Choice(["memory", "speed", "throughput"]),
    help="How layers are placed, as for `edgepp serve`.  [default: memory]",
)
@click.option(
    "--tensor",
    type=click.IntRange(1, 16),
    metavar="T",
    help="Plan for a stage of T machines that share each layer, as `edgepp join --tensor T` makes.",
)
@click.option(
    "--tpot",
    metavar="TIME",
    help="Show the links needed for one token per TIME, like 50ms; with --slices the largest batches.",
)
@click.option("--ttft", metavar="TIME", help="Show the links needed for a first token within TIME, like 3s.")
@click.option(
    "--reached",
    metavar="BW,FLOPS",
    help="Shares of the described memory bandwidth and FLOP/s that are reached."
    "  [default: 0.65,0.5; 1,0.4 with --slices]",
)
@click.option("--plot", metavar="FILE", help="Draw latency against throughput, and the parts of a step (PNG, SVG).")
@click.option(
    "--length",
    "lengths",
    type=int,
    multiple=True,
    help="With --plot: length of a sequence in tokens, like 4096; may be given again.",
)
@click.option("--list-hardware", is_flag=True, help="List the hardware for hw= and --slices, with sources.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in seconds, bytes and FLOP/s.")
@given_as(lambda: PlanArguments, lambda: ClusterArguments, lambda: SliceArguments)
def plan(
    arguments: PlanArguments, cluster: ClusterArguments, slices: SliceArguments, *, list_hardware: bool, as_json: bool
) -> None:
    """Predict whether MODEL fits a cluster, and how fast it will be. Downloads nothing.

    MODEL is a card name (see `edgepp models list`), a hub repository (org/name), or a folder in mlx-lm format. Without
    --node and --file the plan is for the live cluster, with the speeds that its nodes measured.

    The first machine coordinates. Each machine needs mem= or hw=. Defaults are 50 GB/s of memory bandwidth, 500
    GFLOP/s, and 0.75 of the memory for the model; links have 0.5 ms and 100 MB/s.

    With --slices the plan is for accelerator chips, by rooflines: the smallest slice that holds MODEL and the next one,
    room for KV caches, sequences, step time, answers per second and chip, latency against throughput. The
    precisions are those of --dtype, whatever MODEL is stored in.

    \b
    A Mac Studio and a Mac mini on one switch:
        edgepp plan llama-3.3-70b-4bit --node name=studio,hw=m2-max,mem=64GB \\
            --node name=mini,mem=16GB,bw=100GB/s,flops=3.6T --link 1Gbit:0.3ms
    The links that both machines need for 5 tokens per second:
        edgepp plan llama-3.3-70b-4bit … --tpot 200ms --ttft 10s
    From a file (edgepp plan llama-3.1-8b-4bit --file home.toml):
        [[nodes]]
        name = "studio"
        hw = "m2-max"
        [[nodes]]
        name = "pi"
        mem = "8GB"
        [links]
        default = "1Gbit:0.3ms"
        "studio,pi" = "100Mbit:1ms"
    Slices of a TPU, and the best of them for 15 ms per token:
        edgepp plan llama-3.3-70b --slices v5e --dtype bf16,int8,int4 \\
            --context 8192 --prompt 8192 --answer 512
        edgepp plan llama-3.3-70b --slices v5e --dtype int8 --tpot 15ms
    """
    from edgepp.ui import plan as ui

    if list_hardware:
        ui.list_hardware(as_json=as_json)
    elif arguments.model is None:
        raise UsageError("MODEL is missing", "see `edgepp models list`, or `edgepp plan --help`")
    elif slices.slices is not None:
        from edgepp.ui.plan_slices import show_slices

        show_slices(slices.question(arguments, arguments.model, slices.slices), as_json=as_json)
    elif slices.dtypes is not None:
        raise UsageError("--dtype goes with --slices", "a cluster runs MODEL in the precision that it is stored in")
    else:
        question = cluster.question(arguments, arguments.model)
        spec = cluster.spec(question, arguments.reached)
        ui.show_plan(question, spec, cluster.plot, cluster.lengths, as_json=as_json)
