"""Layout of a model on a cluster: the question, the stages, and their predicted speed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from edgepp.errors import UsageError
from edgepp.placement.values import PlacementRequest, Plan, Policy
from edgepp.plan.cluster_spec import ClusterSpec
from edgepp.plan.machines import Model, Stage, Workload
from edgepp.plan.predict import Prediction, predict


@dataclass(frozen=True)
class ClusterQuestion:
    """What a cluster is asked to run."""

    model: Model
    workload: Workload = field(default_factory=Workload)
    context: int = 4096
    max_sequences: int = 2
    policy: Policy = "memory"
    tpot_s: float | None = None
    ttft_s: float | None = None
    tensor: int = 1
    """Machines that are to share each layer of one stage; 1: as the policy decides."""

    def __post_init__(self) -> None:
        positions = self.workload.prompt + self.workload.answer
        if min(self.max_sequences, self.context) < 1:
            raise UsageError("a plan needs at least 1 sequence and 1 position of context")
        if positions > self.context:
            raise UsageError(
                f"a prompt of {self.workload.prompt} and an answer of {self.workload.answer} tokens take {positions}"
                f" positions, more than the context of {self.context}",
                f"plan for --context {positions}, or a shorter --prompt or --answer",
            )
        for name, wanted_s in (("token", self.tpot_s), ("first token", self.ttft_s)):
            if wanted_s is not None and wanted_s <= 0:
                raise UsageError(f"no {name} comes in {wanted_s:g} s", "ask for a time above 0")
        if self.context > self.model.context:
            raise UsageError(
                f"{self.model.name} has a context of {self.model.context}, less than {self.context}",
                f"plan for --context {self.model.context}",
            )

    @property
    def placement(self) -> PlacementRequest:
        """The request to placement."""
        positions = self.workload.prompt + self.workload.answer
        return PlacementRequest(self.model.size, self.context, self.max_sequences, self.policy, positions)


@dataclass(frozen=True)
class Layout:
    """The stages of a model on a cluster, and their predicted speed."""

    cluster: ClusterSpec
    plan: Plan
    stages: tuple[Stage, ...]
    prediction: Prediction
    """For one request, and for each number of requests that was asked for."""

    @property
    def machines(self) -> int:
        """Number of nodes that take part: those with layers, and the coordinator."""
        return len({self.cluster.coordinator.name, *(name for stage in self.stages for name in stage.names)})


def make_layout(question: ClusterQuestion, cluster: ClusterSpec) -> Layout:
    """Place the model on a cluster and predict its speed.

    Raises:
        PlanError: the cluster cannot hold the model; the hint says what would help.
    """
    plan = cluster.place(question.placement, question.tensor)
    stages = cluster.stages(plan, question.placement)
    workload = dataclasses.replace(question.workload, requests=tuple({1, *question.workload.requests}))
    prediction = predict(question.model, stages, cluster.links, workload, cluster.coordinator.machine)
    return Layout(cluster, plan, stages, prediction)
