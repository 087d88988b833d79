"""What a cluster will do with a model, against its best node alone, what it would need, and what would help.

Every suggestion has been tried: laid out anew, predicted, and compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise

from edgepp.cluster.placement import LinkSpeed, Plan, Policy, Want
from edgepp.errors import PlanError, UsageError
from edgepp.model.cards import Card, catalogue
from edgepp.plan.cluster import Cluster, Node
from edgepp.plan.machines import Machine, Model, Stage, Workload
from edgepp.plan.predict import Prediction, predict

_CROWD = 8
"""Requests at once for which throughput is compared."""
_WORTH = 1.05
"""A change that speeds an answer up by less is not worth a word."""
_FASTEST_LINK = 1e12
_SLOWEST_LINK = 1e3


@dataclass(frozen=True)
class Question:
    """What is asked of a cluster."""

    model: Model
    workload: Workload = field(default_factory=Workload)
    context: int = 4096
    slots: int = 2
    policy: Policy = "memory"
    tpot_s: float | None = None
    ttft_s: float | None = None

    def __post_init__(self) -> None:
        positions = self.workload.prompt + self.workload.answer
        if min(self.slots, self.context) < 1:
            raise UsageError("a plan needs at least 1 slot and 1 position of context")
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
    def want(self) -> Want:
        """As placement takes it."""
        return Want(self.model.size, self.context, self.slots, self.policy)


@dataclass(frozen=True)
class Laid:
    """A model laid out on a cluster, and how fast that is."""

    cluster: Cluster
    plan: Plan
    stages: tuple[Stage, ...]
    prediction: Prediction
    """For one request, and for each number of them that was asked for."""

    @property
    def machines(self) -> int:
        """Nodes that take part: those with layers, and the coordinator."""
        return len({self.cluster.coordinator.name, *(stage.machine.node for stage in self.stages)})


@dataclass(frozen=True)
class Single:
    """The fastest node that holds the model alone."""

    name: str
    prediction: Prediction
    speed: float
    """How many times as fast the cluster gives a whole answer to one request: prompt, then all its tokens."""
    crowd: int
    """A number of requests at once,"""
    throughput: float
    """and the cluster's tokens/s with so many, as a multiple of its own."""


@dataclass(frozen=True)
class Need:
    """What the links must do for a wish to come true; None where they cannot."""

    what: str
    """``tpot`` or ``ttft``."""
    wanted_s: float
    predicted_s: float
    without_links_s: float
    """With links that take no time."""
    bytes_s: float | None
    """Bandwidth that every link needs, at its latency."""
    latency_s: float | None
    """One-way latency that no link may exceed, at its bandwidth."""


@dataclass(frozen=True)
class Change:
    """One change to the cluster, and how many times as fast a whole answer to one request would be."""

    what: str
    answer_s: float
    gain: float


@dataclass(frozen=True)
class Outlook:
    """The answer to a question."""

    question: Question
    laid: Laid
    kv_room: int
    """Positions, of all sequences together, that fit beside the weights."""
    single: Single | None
    """None where no node holds the model alone."""
    needs: tuple[Need, ...]
    changes: tuple[Change, ...]
    """That would help, the best first."""


def outlook(question: Question, cluster: Cluster) -> Outlook:
    """All that can be said before anything is downloaded.

    Raises:
        PlanError: the cluster cannot hold the model; with what would help, smaller models among it.
    """
    try:
        laid = lay(question, cluster)
    except PlanError as error:
        raise PlanError(str(error), "; ".join(_ways_out(question, cluster, error.hint))) from error
    return Outlook(
        question=question,
        laid=laid,
        kv_room=cluster.kv_room(question.want, laid.plan),
        single=best_single(question, laid),
        needs=tuple(_needs(question, laid)),
        changes=tuple(sorted(_changes(question, laid), key=lambda change: -change.gain)),
    )


def _ways_out(question: Question, cluster: Cluster, hint: str) -> Iterator[str]:
    """What helps where a model does not fit: the hint of placement, models that fit, and memory that was assumed."""
    if hint:
        yield hint
    if names := smaller_models(question, cluster):
        yield f"what fits: {', '.join(names)}"
    if assumed := [node for node in cluster.nodes if node.assumed]:
        sizes = ", ".join(f"{node.name}: {node.said}" for node in assumed)
        yield f"memory was assumed ({sizes}): say mem= where it is more"


def smaller_models(question: Question, cluster: Cluster, most: int = 3) -> list[str]:
    """Cards that fit in place of the model: the same one in fewer bits first, then the largest of others."""

    def fits(card: Card) -> bool:
        size = Model.of(card.name, card).size
        try:
            cluster.place(dataclasses.replace(question.want, size=size, context=min(question.context, card.context)))
        except PlanError:
            return False
        return True

    size = question.model.size
    total = size.layers * size.layer_bytes + size.ends_bytes
    smaller = [card for card in catalogue().values() if card.bytes_total < total]
    smaller.sort(key=lambda card: ((card.layers, card.hidden) != (size.layers, size.hidden), -card.bytes_total))
    return [card.name for card in islice(filter(fits, smaller), most)]


def lay(question: Question, cluster: Cluster) -> Laid:
    """Place the model on a cluster and predict its speed.

    Raises:
        PlanError: the cluster cannot hold it; with what would help.
    """
    plan = cluster.place(question.want)
    stages = cluster.stages(plan)
    workload = dataclasses.replace(question.workload, requests=tuple({1, *question.workload.requests}))
    prediction = predict(question.model, stages, cluster.links, workload, cluster.coordinator.machine)
    return Laid(cluster, plan, stages, prediction)


def best_single(question: Question, laid: Laid) -> Single | None:
    """The node that answers soonest alone, of those that hold the model; None where none does."""
    crowded = dataclasses.replace(question, workload=dataclasses.replace(question.workload, requests=(1, _CROWD)))
    alone: list[tuple[str, Prediction]] = []
    for node in laid.cluster.nodes:
        with suppress(PlanError):  # it does not hold the model
            alone.append((node.name, lay(crowded, laid.cluster.alone(node.name)).prediction))
    if not alone:
        return None
    name, prediction = min(alone, key=lambda one: one[1].answer_s(question.workload))
    together = predict(
        question.model, laid.stages, laid.cluster.links, crowded.workload, laid.cluster.coordinator.machine
    )
    return Single(
        name=name,
        prediction=prediction,
        speed=prediction.answer_s(question.workload) / together.answer_s(question.workload),
        crowd=_CROWD,
        throughput=together.decode[-1].tokens_s / prediction.decode[-1].tokens_s,
    )


# What the links must do


def _needs(question: Question, laid: Laid) -> Iterator[Need]:
    if question.tpot_s is not None:
        yield _need("tpot", question.tpot_s, question, laid, lambda prediction: prediction.one.tpot_s)
    if question.ttft_s is not None:
        yield _need("ttft", question.ttft_s, question, laid, lambda prediction: prediction.prefill.ttft_s)


def _need(what: str, wanted_s: float, question: Question, laid: Laid, measure: Callable[[Prediction], float]) -> Need:
    one = dataclasses.replace(question.workload, requests=(1,))

    def with_links(change: Callable[[LinkSpeed], LinkSpeed]) -> float:
        links = laid.cluster.with_links(change).links
        return measure(predict(question.model, laid.stages, links, one, laid.cluster.coordinator.machine))

    def at_rate(bytes_s: float) -> float:
        return with_links(lambda link: LinkSpeed(link.latency_s, bytes_s))

    def at_latency(latency_s: float) -> float:
        return with_links(lambda link: LinkSpeed(latency_s, link.bytes_s))

    apart = laid.machines > 1
    return Need(
        what=what,
        wanted_s=wanted_s,
        predicted_s=measure(laid.prediction),
        without_links_s=with_links(lambda _: LinkSpeed(0.0, _FASTEST_LINK)),
        bytes_s=_least(_SLOWEST_LINK, _FASTEST_LINK, lambda rate: at_rate(rate) <= wanted_s) if apart else None,
        latency_s=_most(1e-7, wanted_s, lambda latency: at_latency(latency) <= wanted_s) if apart else None,
    )


def _least(low: float, high: float, enough: Callable[[float], bool]) -> float | None:
    """The least value that is enough, to a thousandth; None where not even ``high`` is."""
    if not enough(high):
        return None
    if enough(low):
        return low
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _most(low: float, high: float, enough: Callable[[float], bool]) -> float | None:
    """The greatest value that is enough, to a thousandth; None where not even ``low`` is."""
    found = _least(1 / high, 1 / low, lambda inverse: enough(1 / inverse))
    return None if found is None else 1 / found


# What would help


def _changes(question: Question, laid: Laid) -> Iterator[Change]:
    """Each change that makes an answer faster, laid out anew and predicted."""
    one = dataclasses.replace(question, workload=dataclasses.replace(question.workload, requests=(1,)))
    now_s = laid.prediction.answer_s(question.workload)
    for what, asked, cluster in _candidates(one, laid):
        try:
            then_s = lay(asked, cluster).prediction.answer_s(question.workload)
        except PlanError:
            continue  # without that node it does not fit
        if now_s / then_s >= _WORTH:
            yield Change(what, then_s, now_s / then_s)


def _candidates(question: Question, laid: Laid) -> Iterator[tuple[str, Question, Cluster]]:
    cluster = laid.cluster
    way = [cluster.coordinator.name, *(stage.machine.node for stage in laid.stages)]
    if any(a != b for a, b in pairwise(way)):
        wider = cluster.with_links(lambda link: LinkSpeed(link.latency_s, 10 * link.bytes_s))
        yield "ten times the bandwidth on every link", question, wider
        quicker = cluster.with_links(lambda link: LinkSpeed(link.latency_s / 10, link.bytes_s))
        yield "a tenth of the latency on every link", question, quicker
    slowest = max(laid.prediction.one.stages, key=lambda time: time.busy_s).node
    yield f"twice the memory bandwidth on {slowest}", question, cluster.with_machine(slowest, _twice_the_bandwidth)
    busiest = max(laid.prediction.prefill.stages, key=lambda time: time.busy_s).node
    yield f"twice the FLOP/s on {busiest}", question, cluster.with_machine(busiest, _twice_the_flops)
    for node in cluster.nodes:
        if len(cluster.nodes) > 1 and node.name in way and node.memory:
            yield f"leaving {node.name} out", question, cluster.only(*({n.name for n in cluster.nodes} - {node.name}))
    largest = max(cluster.nodes, key=lambda node: (node.memory, node.machine.stream_bps))
    yield f"one more node like {largest.name}", question, cluster.with_node(_another(largest, cluster))
    if question.policy != "speed":
        yield "layers placed with --policy speed", dataclasses.replace(question, policy="speed"), cluster


def _twice_the_bandwidth(machine: Machine) -> Machine:
    return dataclasses.replace(machine, stream_bps=2 * machine.stream_bps)


def _twice_the_flops(machine: Machine) -> Machine:
    return dataclasses.replace(machine, flops=2 * machine.flops)


def _another(node: Node, cluster: Cluster) -> Node:
    names = {other.name for other in cluster.nodes}
    name = next(f"{node.name} {n}" for n in range(2, len(names) + 3) if f"{node.name} {n}" not in names)
    return dataclasses.replace(node, machine=dataclasses.replace(node.machine, node=name), pinned=None)
