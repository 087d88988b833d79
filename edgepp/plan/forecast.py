"""Forecast of a model on a cluster: its speed, the best node alone, the links it needs, and changes that would help."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from edgepp.errors import PlanError
from edgepp.model.catalogue.cards import Card, catalogue
from edgepp.plan.advice import Change, Need, changes, needs
from edgepp.plan.cluster_spec import ClusterSpec
from edgepp.plan.layout import ClusterQuestion, Layout, make_layout
from edgepp.plan.machines import Model
from edgepp.plan.predict import Prediction, predict
from edgepp.plan.ways import Way, ways

_MANY_REQUESTS = 8
"""Requests at the same time for which throughput is compared."""


@dataclass(frozen=True)
class BestNode:
    """The fastest node that holds the model alone."""

    name: str
    prediction: Prediction
    speedup: float
    """Time on this node / time on the cluster for one answer, prompt and all tokens."""
    requests: int
    """Number of requests at the same time for ``throughput_ratio``."""
    throughput_ratio: float
    """Tokens/s of the cluster / tokens/s of this node, with ``requests`` at the same time."""


@dataclass(frozen=True)
class Forecast:
    """The answer to a ``ClusterQuestion``."""

    question: ClusterQuestion
    layout: Layout
    kv_room: int
    """Positions of all sequences together whose KV caches fit in addition to the weights."""
    best_node: BestNode | None
    """None if no node holds the model alone."""
    needs: tuple[Need, ...]
    changes: tuple[Change, ...]
    """Changes that would help, the best first."""
    ways: tuple[Way, ...]
    """Layers shared, a pipeline, one machine: what is possible of these, the fastest first; empty for one machine."""


def forecast(question: ClusterQuestion, cluster: ClusterSpec) -> Forecast:
    """Forecast of ``question`` on ``cluster``; nothing is downloaded.

    Raises:
        PlanError: the cluster cannot hold the model; the hint says what would help, with models that fit.
    """
    try:
        layout = make_layout(question, cluster)
    except PlanError as error:
        raise PlanError(str(error), "; ".join(_hints(question, cluster, error.hint))) from error
    return Forecast(
        question=question,
        layout=layout,
        kv_room=cluster.kv_room(question.placement, layout.plan),
        best_node=best_node(question, layout),
        needs=tuple(needs(question, layout)),
        changes=tuple(sorted(changes(question, layout), key=lambda change: -change.gain)),
        ways=ways(question, cluster),
    )


def _hints(question: ClusterQuestion, cluster: ClusterSpec, hint: str) -> Iterator[str]:
    """Hints for a model that does not fit: the hint of placement, models that fit, memory that was assumed."""
    if hint:
        yield hint
    if names := smaller_models(question, cluster):
        yield f"what fits: {', '.join(names)}"
    if assumed := [node for node in cluster.nodes if node.assumed]:
        sizes = ", ".join(f"{node.name}: {node.source}" for node in assumed)
        yield f"memory was assumed ({sizes}): give mem= where there is more"


def smaller_models(question: ClusterQuestion, cluster: ClusterSpec, limit: int = 3) -> list[str]:
    """Names of at most ``limit`` cards that fit: the same model in fewer bits first, then the largest others."""

    def fits(card: Card) -> bool:
        size = Model.of(card.name, card).size
        try:
            cluster.place(
                dataclasses.replace(question.placement, size=size, context=min(question.context, card.context))
            )
        except PlanError:
            return False
        return True

    size = question.model.size
    smaller = [card for card in catalogue().values() if card.bytes_total < size.weight_bytes]
    smaller.sort(key=lambda card: ((card.layers, card.hidden) != (size.layers, size.hidden), -card.bytes_total))
    return [card.name for card in islice(filter(fits, smaller), limit)]


def best_node(question: ClusterQuestion, layout: Layout) -> BestNode | None:
    """The node that gives a whole answer soonest alone; None if no node holds the model."""
    many = dataclasses.replace(question, workload=dataclasses.replace(question.workload, requests=(1, _MANY_REQUESTS)))
    alone: list[tuple[str, Prediction]] = []
    for node in layout.cluster.nodes:
        with suppress(PlanError):  # the node does not hold the model
            alone.append((node.name, make_layout(many, layout.cluster.alone(node.name)).prediction))
    if not alone:
        return None
    name, prediction = min(alone, key=lambda one: one[1].answer_s(question.workload))
    together = predict(
        question.model, layout.stages, layout.cluster.links, many.workload, layout.cluster.coordinator.machine
    )
    return BestNode(
        name=name,
        prediction=prediction,
        speedup=prediction.answer_s(question.workload) / together.answer_s(question.workload),
        requests=_MANY_REQUESTS,
        throughput_ratio=together.decode[-1].tokens_per_s / prediction.decode[-1].tokens_per_s,
    )
