"""Options of `edgepp plan`, turned into the question of a forecast: about a cluster, or about slices of a chip."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepp.errors import UsageError

if TYPE_CHECKING:
    from edgepp.placement.values import Policy
    from edgepp.plan.chip_slices import SliceQuestion
    from edgepp.plan.cluster_spec import ClusterSpec
    from edgepp.plan.layout import ClusterQuestion
    from edgepp.plan.machines import Workload


@dataclass(frozen=True)
class PlanArguments:
    """The model and the requests of `edgepp plan`, for a cluster or for slices of a chip."""

    model: str | None = None
    context: int = 4096
    """Positions (tokens) per conversation."""
    prompt: int = 512
    """Tokens of a prompt."""
    answer: int = 256
    """Tokens of an answer."""
    requests: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of requests at the same time."""
    tpot: str | None = None
    """Wanted time per token, like ``50ms``."""
    reached: str | None = None
    """Shares of the described memory bandwidth and FLOP/s that are reached, like ``0.65,0.5``."""

    def workload(self) -> Workload:
        """The workload of the forecast: tokens of a prompt and of an answer, and numbers of requests.

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
    """Conversations at the same time for which memory is reserved."""
    kv_bits: int | None = None
    policy: Policy = "memory"
    tensor: int = 1
    ttft: str | None = None
    """Wanted time to the first token, like ``3s``."""
    plot: str | None = None
    lengths: tuple[int, ...] = ()
    """Lengths of the sequences to draw, in positions."""

    def question(self, plan: PlanArguments, model: str) -> ClusterQuestion:
        """The question of the forecast for a cluster.

        Raises:
            UsageError: an option cannot be read, or does not go with another one.
            ModelError: there is no such model.
        """
        from edgepp.plan.layout import ClusterQuestion
        from edgepp.plan.planned_model import read_model
        from edgepp.plan.quantities import parse_seconds

        if self.lengths and self.plot is None:
            raise UsageError("--length is for --plot", "add --plot FILE, like --plot plan.png")
        if self.lengths and min(self.lengths) < 1:
            raise UsageError("a length is at least 1 position", "write it like --length 4096")
        if plan.reached is not None and not self.nodes and self.file is None:
            raise UsageError("--reached goes with --node or --file", "a live node reports the rates that it reaches")
        return ClusterQuestion(
            model=read_model(model, self.kv_bits),
            workload=plan.workload(),
            context=plan.context,
            max_sequences=self.max_sequences,
            policy=self.policy,
            tensor=self.tensor,
            tpot_s=None if plan.tpot is None else parse_seconds(plan.tpot),
            ttft_s=None if self.ttft is None else parse_seconds(self.ttft),
        )

    def spec(self, question: ClusterQuestion, reached: str | None) -> ClusterSpec:
        """The described cluster, or the live one if no node and no file describes a cluster.

        ``reached`` are the shares of the described memory bandwidth and FLOP/s that are reached, like ``0.65,0.5``;
        None keeps the shares of the description.

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
    """Chip and perhaps slice, like ``v5e`` or ``v5e:4x8``."""
    dtypes: str | None = None
    """Precisions separated by commas, like ``bf16,int8``; None for bf16, int8 and int4."""

    def question(self, plan: PlanArguments, model: str, slices: str) -> SliceQuestion:
        """The question of the forecast for slices of a chip.

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


def _given() -> dict[str, str]:
    """The options that were given on the command line: parameter name to option, like ``kv_bits`` to ``--kv-bits``."""
    context = click.get_current_context()
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    }


def _live(peer: str | None, question: ClusterQuestion) -> ClusterSpec:
    from edgepp.errors import PairingError
    from edgepp.plan.live_cluster import from_status
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
