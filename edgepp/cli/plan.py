"""`edgepp plan`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from edgepp.cli.options import KV_BITS, KV_BITS_HELP
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.plan.chip_slices import SliceQuestion
    from edgepp.plan.cluster_spec import ClusterSpec
    from edgepp.plan.layout import Question
    from edgepp.plan.machines import Model

_MOST_REQUESTS = 10_000
_NOT_WITH_SLICES = ("nodes", "links", "file", "peer", "max_sequences", "kv_bits", "policy", "ttft", "plot", "lengths")
"""Parameters about a cluster, which say nothing about slices of a chip."""
_PREFILL_SHARE = 0.4
"""Share of a chip's FLOP/s that prefill reaches unless --reached gives another."""


@click.command()
@click.argument("model", required=False)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="KEY=VALUE,…",
    help="A machine: mem=16GB, hw=m4-pro, name=, bw=100GB/s, flops=3.6T, usable=0.75, layers=A-B. Repeat it.",
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
@click.option("--peer", metavar="HOST:PORT", help="Address of `edgepp serve`, if the live cluster is not found.")
@click.option("--context", type=int, default=4096, show_default=True, help="Positions (tokens) per conversation.")
@click.option("--max-sequences", type=int, default=2, show_default=True, help="Conversations at the same time.")
@click.option("--kv-bits", type=KV_BITS, help=KV_BITS_HELP)
@click.option("--prompt", type=int, default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--answer", type=int, default=256, show_default=True, help="Tokens of an answer.")
@click.option(
    "--requests",
    default="1,2,4,8,16",
    show_default=True,
    help="Numbers of requests at the same time to predict; 1 is always shown.",
)
@click.option(
    "--policy",
    type=click.Choice(["memory", "speed", "throughput"]),
    default="memory",
    show_default=True,
    help="How layers are placed, as for `edgepp serve`.",
)
@click.option(
    "--tpot", metavar="TIME", help="Show the links needed for one token per TIME, like 50ms; with --slices the batches."
)
@click.option("--ttft", metavar="TIME", help="Show the links needed for a first token within TIME, like 3s.")
@click.option(
    "--reached",
    metavar="BW,FLOPS",
    help="Shares of described rates that are reached: 0.65,0.5 by default, 1,0.4 with --slices.",
)
@click.option("--plot", metavar="FILE", help="Draw latency against throughput, and the parts of a step (PNG, SVG).")
@click.option("--length", "lengths", type=int, multiple=True, help="Positions of a sequence to draw; repeat it.")
@click.option("--list-hardware", is_flag=True, help="List the hardware for hw= and --slices, with sources.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in seconds, bytes and FLOP/s.")
def plan(
    model: str | None,
    nodes: tuple[str, ...],
    links: tuple[str, ...],
    file: str | None,
    slices: str | None,
    dtypes: str | None,
    peer: str | None,
    context: int,
    max_sequences: int,
    kv_bits: str | None,
    prompt: int,
    answer: int,
    requests: str,
    policy: str,
    tpot: str | None,
    ttft: str | None,
    reached: str | None,
    plot: str | None,
    lengths: tuple[int, ...],
    *,
    list_hardware: bool,
    as_json: bool,
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
    The links they need for 5 tokens per second:
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
    from edgepp.plan.planned_model import read_model
    from edgepp.plan.quantities import parse_shares
    from edgepp.ui import plan as ui

    if list_hardware:
        ui.list_hardware(as_json=as_json)
        return
    if model is None:
        raise UsageError("MODEL is missing", "see `edgepp models list`, or `edgepp plan --help`")
    if slices is not None:
        from edgepp.ui.plan_slices import show_slices

        work = (prompt, answer, requests)
        show_slices(_slice_question(model, slices, dtypes, reached, context, work, tpot), as_json=as_json)
        return
    if dtypes is not None:
        raise UsageError("--dtype goes with --slices", "a cluster runs MODEL in the precision that it is stored in")
    if lengths and plot is None:
        raise UsageError("--length is for --plot", "add --plot FILE, like --plot plan.png")
    if lengths and min(lengths) < 1:
        raise UsageError("a length is at least 1 position", "write it like --length 4096")
    if reached is not None and not nodes and file is None:
        raise UsageError("--reached goes with --node or --file", "what a live node measured is what it reaches")
    sizes = read_model(model, int(kv_bits) if kv_bits else None)
    question = _question(sizes, context, max_sequences, policy, _workload_of(prompt, answer, requests), (tpot, ttft))
    cluster = _cluster(nodes, links, file, peer, question)
    if reached is not None:
        cluster = cluster.reaching(*parse_shares(reached))
    if plot is not None:
        from edgepp.ui.plan_plot import draw, load_pyplot

        load_pyplot()  # fails before the tables are printed if it is missing
    ui.show_plan(question, cluster, as_json=as_json)
    if plot is not None:
        draw(question, cluster, plot, lengths)


def _slice_question(
    model: str,
    slices: str,
    dtypes: str | None,
    reached: str | None,
    context: int,
    work: tuple[int, int, str],
    tpot: str | None,
) -> SliceQuestion:
    from dataclasses import replace

    from edgepp.plan import hardware
    from edgepp.plan.chip_slices import ITEM_BYTES, SliceQuestion, read_precision, read_slices
    from edgepp.plan.planned_model import read_shape
    from edgepp.plan.quantities import parse_seconds, parse_shares

    given = _given()
    if wrong := [name for name in _NOT_WITH_SLICES if name in given]:
        raise UsageError(f"{given[wrong[0]]} does not go with --slices", "leave one of them out")
    name, _, one = slices.partition(":")
    chip = hardware.find(name)
    shares = (1.0, _PREFILL_SHARE) if reached is None else parse_shares(reached)
    prompt, answer, batches = _workload_of(*work)
    shape_name, shape = read_shape(model)
    return SliceQuestion(
        name=shape_name,
        shape=shape,
        chip=replace(chip, memory_bytes_per_s=shares[0] * chip.memory_bytes_per_s),
        slices=read_slices(chip, one),
        precisions=tuple(read_precision(text.strip(), chip) for text in (dtypes or ",".join(ITEM_BYTES)).split(",")),
        context=context,
        prompt=prompt,
        answer=answer,
        batches=batches if "requests" in given else (),
        tpot_s=None if tpot is None else parse_seconds(tpot),
        utilisation=shares[1],
    )


def _given() -> dict[str, str]:
    """Options that were given on the command line: parameter name to option."""
    context = click.get_current_context()
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    }


def _workload_of(prompt: int, answer: int, requests: str) -> tuple[int, int, tuple[int, ...]]:
    counts = [part.strip() for part in requests.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,5}", count) and 0 < int(count) <= _MOST_REQUESTS for count in counts):
        raise UsageError(
            f"'{requests}' is not a list of numbers of requests",
            f"write them like 1,2,4,8, none above {_MOST_REQUESTS:,}",
        )
    if min(prompt, answer) < 1:
        raise UsageError("a prompt and an answer have at least 1 token")
    return prompt, answer, tuple(sorted({int(count) for count in counts}))


def _question(
    model: Model,
    context: int,
    max_sequences: int,
    policy: str,
    work: tuple[int, int, tuple[int, ...]],
    wishes: tuple[str | None, str | None],
) -> Question:
    from edgepp.plan.layout import Question
    from edgepp.plan.machines import Workload
    from edgepp.plan.quantities import parse_seconds

    prompt, answer, requests = work
    tpot_s, ttft_s = (None if wish is None else parse_seconds(wish) for wish in wishes)
    return Question(
        model=model,
        workload=Workload(prompt, answer, requests),
        context=context,
        max_sequences=max_sequences,
        policy=policy,  # type: ignore[arg-type]  # click has checked it
        tpot_s=tpot_s,
        ttft_s=ttft_s,
    )


def _cluster(
    nodes: tuple[str, ...], links: tuple[str, ...], file: str | None, peer: str | None, question: Question
) -> ClusterSpec:
    from pathlib import Path

    from edgepp.plan import describe_cluster as describe

    if sum((bool(nodes), file is not None, peer is not None)) > 1:
        raise UsageError("--node, --file and --peer exclude each other")
    if links and not nodes:
        raise UsageError("--link goes with --node", "a file has its own [links]; a live cluster measures them")
    if nodes:
        return describe.described(
            describe.read_nodes([describe.parse_node(text) for text in nodes]),
            [describe.parse_named_link(text) for text in links],
        )
    if file is not None:
        return describe.read_file(Path(file).expanduser())
    return _live(peer, question)


def _live(peer: str | None, question: Question) -> ClusterSpec:
    from edgepp.errors import PairingError
    from edgepp.plan.describe_cluster import from_status
    from edgepp.plan.planned_model import same_model
    from edgepp.ui.peers import connect

    try:
        with connect(peer) as served:
            status = served.status
        running = same_model(str(status.get("model")), question.model)
        return from_status(status, question.model.size if running else None)
    except PairingError as error:
        error.hint = f"describe the machines with --node mem=16GB, once a machine; or {error.hint}"
        raise
