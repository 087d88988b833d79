"""Link speeds that a wanted latency needs, and single changes that make answers faster.

Each suggestion comes from a new placement and prediction with the change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from edgepp.errors import PlanError
from edgepp.placement.values import LinkSpeed
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.layout import ClusterQuestion, Layout, make_layout
from edgepp.plan.machines import Machine
from edgepp.plan.predict import Prediction, predict

_MIN_GAIN = 1.05
"""Smallest gain for which a change is reported."""
_MAX_BYTES_PER_S = 1e12
_MIN_BYTES_PER_S = 1e3


@dataclass(frozen=True)
class Need:
    """Bandwidth and latency that every link needs for a wanted time; None where no link is good enough."""

    what: str
    """``tpot`` or ``ttft``."""
    wanted_s: float
    predicted_s: float
    without_links_s: float
    """Predicted time with links that take no time."""
    bytes_per_s: float | None
    """Lowest sufficient rate of every link, at its latency."""
    latency_s: float | None
    """Highest sufficient one-way latency of every link, at its rate."""


@dataclass(frozen=True)
class Change:
    """One change to the cluster, and the time of one answer, prompt and tokens, after it."""

    what: str
    answer_s: float
    gain: float
    """Time without the change / time with it."""


# Needs of the links


def needs(question: ClusterQuestion, layout: Layout) -> Iterator[Need]:
    """Needs of the links for each time that the question asks for."""
    if question.tpot_s is not None:
        yield _need("tpot", question.tpot_s, question, layout, lambda prediction: prediction.one.tpot_s)
    if question.ttft_s is not None:
        yield _need("ttft", question.ttft_s, question, layout, lambda prediction: prediction.prefill.ttft_s)


def _need(
    what: str, wanted_s: float, question: ClusterQuestion, layout: Layout, measure: Callable[[Prediction], float]
) -> Need:
    one = dataclasses.replace(question.workload, requests=(1,))

    def with_links(change: Callable[[LinkSpeed], LinkSpeed]) -> float:
        links = layout.cluster.with_links(change).links
        return measure(predict(question.model, layout.stages, links, one, layout.cluster.coordinator.machine))

    def at_rate(bytes_per_s: float) -> float:
        return with_links(lambda link: LinkSpeed(link.latency_s, bytes_per_s))

    def at_latency(latency_s: float) -> float:
        return with_links(lambda link: LinkSpeed(latency_s, link.bytes_per_s))

    linked = layout.machines > 1
    return Need(
        what=what,
        wanted_s=wanted_s,
        predicted_s=measure(layout.prediction),
        without_links_s=with_links(lambda _: LinkSpeed(0.0, _MAX_BYTES_PER_S)),
        bytes_per_s=_smallest(_MIN_BYTES_PER_S, _MAX_BYTES_PER_S, lambda rate: at_rate(rate) <= wanted_s)
        if linked
        else None,
        latency_s=_greatest(1e-7, wanted_s, lambda latency: at_latency(latency) <= wanted_s) if linked else None,
    )


def _smallest(low: float, high: float, enough: Callable[[float], bool]) -> float | None:
    """Smallest value from ``low`` to ``high`` that is enough, within 0.1 %; None if ``high`` is not enough."""
    if not enough(high):
        return None
    if enough(low):
        return low
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _greatest(low: float, high: float, enough: Callable[[float], bool]) -> float | None:
    """Greatest value from ``low`` to ``high`` that is enough, within 0.1 %; None if ``low`` is not enough."""
    found = _smallest(1 / high, 1 / low, lambda inverse: enough(1 / inverse))
    return None if found is None else 1 / found


# Changes that would help


def changes(question: ClusterQuestion, layout: Layout) -> Iterator[Change]:
    """Each change that makes an answer faster, placed and predicted again, in no order."""
    one = dataclasses.replace(question, workload=dataclasses.replace(question.workload, requests=(1,)))
    now_s = layout.prediction.answer_s(question.workload)
    for what, changed, cluster in _candidates(one, layout):
        try:
            then_s = make_layout(changed, cluster).prediction.answer_s(question.workload)
        except PlanError:
            continue  # the model does not fit after the change
        if now_s / then_s >= _MIN_GAIN:
            yield Change(what, then_s, now_s / then_s)


def _candidates(question: ClusterQuestion, layout: Layout) -> Iterator[tuple[str, ClusterQuestion, ClusterSpec]]:
    cluster = layout.cluster
    path = [cluster.coordinator.name, *(stage.machine.node for stage in layout.stages)]
    if any(a != b for a, b in pairwise(path)):
        wider = cluster.with_links(lambda link: LinkSpeed(link.latency_s, 10 * link.bytes_per_s))
        yield "ten times the bandwidth on every link", question, wider
        quicker = cluster.with_links(lambda link: LinkSpeed(link.latency_s / 10, link.bytes_per_s))
        yield "a tenth of the latency on every link", question, quicker
    slowest = max(layout.prediction.one.stages, key=lambda time: time.busy_s).node
    yield f"twice the memory bandwidth on {slowest}", question, cluster.with_machine(slowest, _twice_the_bandwidth)
    busiest = max(layout.prediction.prefill.stages, key=lambda time: time.busy_s).node
    yield f"twice the FLOP/s on {busiest}", question, cluster.with_machine(busiest, _twice_the_flops)
    for node in cluster.nodes:
        if len(cluster.nodes) > 1 and node.name in path and node.memory_bytes:
            yield f"leaving {node.name} out", question, cluster.only(*({n.name for n in cluster.nodes} - {node.name}))
    largest = max(cluster.nodes, key=lambda node: (node.memory_bytes, node.machine.stream_bytes_per_s))
    yield f"one more node like {largest.name}", question, cluster.with_node(_another(largest, cluster))
    if question.policy != "speed":
        yield "layers placed with --policy speed", dataclasses.replace(question, policy="speed"), cluster


def _twice_the_bandwidth(machine: Machine) -> Machine:
    return dataclasses.replace(machine, stream_bytes_per_s=2 * machine.stream_bytes_per_s)


def _twice_the_flops(machine: Machine) -> Machine:
    return dataclasses.replace(machine, flops_per_s=2 * machine.flops_per_s)


def _another(node: Node, cluster: ClusterSpec) -> Node:
    names = {other.name for other in cluster.nodes}
    name = next(f"{node.name} {n}" for n in range(2, len(names) + 3) if f"{node.name} {n}" not in names)
    return dataclasses.replace(node, machine=dataclasses.replace(node.machine, node=name), pinned=None)
