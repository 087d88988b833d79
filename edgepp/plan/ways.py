"""Ways to run a model on several machines, compared: layers shared, a pipeline of layers, or one machine alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from edgepp.errors import PlanError
from edgepp.placement.group_search import MAX_GROUPED
from edgepp.placement.values import Policy
from edgepp.plan.cluster_spec import ClusterSpec
from edgepp.plan.layout import ClusterQuestion, Layout, make_layout

WayName = Literal["tensor", "pipeline", "one"]


@dataclass(frozen=True)
class Way:
    """One way to run the model, and its predicted speed."""

    name: WayName
    layout: Layout
    answer_s: float
    """Seconds of one answer, prompt and tokens."""
    policy: Policy
    """Policy of the placement."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the machines that hold layers."""
        return tuple(dict.fromkeys(name for stage in self.layout.stages for name in stage.names))

    @property
    def sums_s(self) -> float:
        """Seconds of a token in which machines add partial sums."""
        return sum(stage.sums_s for stage in self.layout.prediction.one.stages)


def ways(question: ClusterQuestion, cluster: ClusterSpec) -> tuple[Way, ...]:
    """The best way of each kind that is possible, the fastest first; empty on a cluster of one machine."""
    one = dataclasses.replace(question, workload=dataclasses.replace(question.workload, requests=(1,)), tensor=1)
    free = dataclasses.replace(
        cluster, nodes=tuple(dataclasses.replace(node, pinned=None) for node in cluster.nodes), measured_sums={}
    )
    if sum(node.memory_bytes > 0 for node in cluster.nodes) < 2:
        return ()
    kinds = [list(kind) for kind in (_alone(one, free), _pipelines(one, free), _shared(one, free, cluster))]
    best = [min(possible, key=lambda way: way.answer_s) for possible in kinds if possible]
    return tuple(sorted(best, key=lambda way: way.answer_s))


def _alone(question: ClusterQuestion, cluster: ClusterSpec) -> Iterator[Way]:
    for node in cluster.nodes:
        with suppress(PlanError):  # the node does not hold the model
            yield _way("one", question, cluster.alone(node.name))


def _pipelines(question: ClusterQuestion, cluster: ClusterSpec) -> Iterator[Way]:
    """Plans by each policy that use several machines."""
    others = (policy for policy in get_args(Policy) if policy != question.policy)
    for policy in (question.policy, *others):  # of equal plans, the one that is shown
        with suppress(PlanError):
            way = _way("pipeline", dataclasses.replace(question, policy=policy), cluster)
            if len(way.nodes) > 1:
                yield way


def _shared(question: ClusterQuestion, free: ClusterSpec, cluster: ClusterSpec) -> Iterator[Way]:
    for count in range(2, min(MAX_GROUPED, len(cluster.nodes)) + 1):
        with suppress(PlanError):
            spec = dataclasses.replace(free, measured_sums=cluster.measured_sums)
            yield _way("tensor", dataclasses.replace(question, tensor=count), spec)


def _way(name: WayName, question: ClusterQuestion, cluster: ClusterSpec) -> Way:
    layout = make_layout(question, cluster)
    return Way(name, layout, layout.prediction.answer_s(question.workload), question.policy)
