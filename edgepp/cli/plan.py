"""`edgepp plan`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepp.cli.options import KV_BITS, KV_BITS_HELP, Counts, given_as
from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.placement.types import Policy
    from edgepp.plan.chip_slices import SliceQuestion
    from edgepp.plan.cluster_spec import ClusterSpec
    from edgepp.plan.layout import Question
    from edgepp.plan.machines import Workload

_MAX_REQUESTS = 10_000


@dataclass(frozen=True)
class PlanArguments:
    """The model and the requests of `edgepp plan`, for a cluster or for slices of a chip."""

    model: str | None = None
    context: int = 4096
    prompt: int = 512
    answer: int = 256
    requests: tuple[int, ...] = (1, 2, 4, 8, 16)
    tpot: str | None = None
    reached: str | None = None

    def workload(self) -> Workload:
        """Lengths and numbers of requests.

        Raises:
            UsageError: a length is below 1.
        """
        from edgepp.plan.machines import Workload

        if min(self.prompt, self.answer) < 1:
            raise UsageError("a prompt and an answer have at least 1 token")
        return Workload(self.prompt, self.answer, self.requests)


@dataclass(frozen=True)
class ClusterArguments:
    """The cluster of `edgepp plan`; none of these options goes with --slices."""

    nodes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    file: str | None = None
    peer: str | None = None
    max_sequences: int = 2
    kv_bits: int | None = None
    policy: Policy = "memory"
    ttft: str | None = None
    plot: str | None = None
    lengths: tuple[int, ...] = ()

    def question(self, plan: PlanArguments, model: str) -> Question:
        """The question to a cluster.

        Raises:
            UsageError: an option cannot be read, or does not go with another one.
            ModelError: there is no such model.
        """
        from edgepp.plan.layout import Question
        from edgepp.plan.planned_model import read_model
        from edgepp.plan.quantities import parse_seconds

        if self.lengths and self.plot is None:
            raise UsageError("--length is for --plot", "add --plot FILE, like --plot plan.png")
        if self.lengths and min(self.lengths) < 1:
            raise UsageError("a length is at least 1 position", "write it like --length 4096")
        if plan.reached is not None and not self.nodes and self.file is None:
            raise UsageError("--reached goes with --node or --file", "a live node reports the rates that it reaches")
        return Question(
            model=read_model(model, self.kv_bits),
            workload=plan.workload(),
            context=plan.context,
            max_sequences=self.max_sequences,
            policy=self.policy,
            tpot_s=None if plan.tpot is None else parse_seconds(plan.tpot),
            ttft_s=None if self.ttft is None else parse_seconds(self.ttft),
        )

    def spec(self, question: Question, reached: str | None) -> ClusterSpec:
        """The described cluster, or the live one; ``reached`` are the shares of described rates that are reached.

        Raises:
            UsageError: an option cannot be read, or does not go with another one.
            EdgeppError: the live cluster does not answer.
        """
        from edgepp.plan import describe_cluster as describe
        from edgepp.plan.quantities import parse_shares

        if sum((bool(self.nodes), self.file is not None, self.peer is not None)) > 1:
            raise UsageError("--node, --file and --peer exclude each other")
        if self.links and not self.nodes:
            raise UsageError("--link goes with --node", "a file has its own [links]; a live cluster measures its links")
        if self.nodes:
            nodes = describe.read_nodes([describe.parse_node(text) for text in self.nodes])
            found = describe.cluster_of(nodes, [describe.parse_named_link(text) for text in self.links])
        elif self.file is not None:
            found = describe.read_file(Path(self.file).expanduser())
        else:
            found = _live(self.peer, question)
        return found if reached is None else found.reaching(*parse_shares(reached))


@dataclass(frozen=True)
class SliceArguments:
    """The chip and the precisions of `edgepp plan --slices`."""

    slices: str | None = None
    dtypes: str | None = None

    def question(self, plan: PlanArguments, model: str, slices: str) -> SliceQuestion:
        """The question to slices of a chip.

        Raises:
            UsageError: an option cannot be read, or does not go with --slices.
            ModelError: there is no such model.
        """
        from edgepp.plan import hardware
        from edgepp.plan.chip_slices import ITEM_BYTES, PREFILL_UTILISATION, SliceQuestion, read_precision, read_slices
        from edgepp.plan.planned_model import read_shape
        from edgepp.plan.quantities import parse_seconds, parse_shares

        given = _given()
        if wrong := [field.name for field in fields(ClusterArguments) if field.name in given]:
            raise UsageError(f"{given[wrong[0]]} does not go with --slices", "leave one of them out")
        chip_name, _, slice_name = slices.partition(":")
        chip = hardware.find(chip_name)
        shares = (1.0, PREFILL_UTILISATION) if plan.reached is None else parse_shares(plan.reached)
        dtypes = (self.dtypes or ",".join(ITEM_BYTES)).split(",")
        workload = plan.workload()
        name, shape = read_shape(model)
        return SliceQuestion(
            name=name,
            shape=shape,
            chip=replace(chip, memory_bytes_per_s=shares[0] * chip.memory_bytes_per_s),
            slices=read_slices(chip, slice_name),
            precisions=tuple(read_precision(text.strip(), chip) for text in dtypes),
            context=plan.context,
            prompt=workload.prompt,
            answer=workload.answer,
            batches=workload.requests if "requests" in given else (),
            tpot_s=None if plan.tpot is None else parse_seconds(plan.tpot),
            utilisation=shares[1],
        )


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


def _given() -> dict[str, str]:
    """Options that were given on the command line: parameter name to option."""
    context = click.get_current_context()
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    }


def _live(peer: str | None, question: Question) -> ClusterSpec:
    from edgepp.errors import PairingError
    from edgepp.plan.describe_cluster import from_status
    from edgepp.plan.planned_model import same_model
    from edgepp.ui.peers import connect

    try:
        with connect(peer) as coordinator:
            status = coordinator.status
        running = same_model(str(status.get("model")), question.model)
        return from_status(status, question.model.size if running else None)
    except PairingError as error:
        error.hint = f"describe the machines with --node mem=16GB, once per machine; or {error.hint}"
        raise
