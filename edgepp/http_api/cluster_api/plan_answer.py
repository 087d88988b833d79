"""`edgepp plan` over HTTP: forecasts of a model on this cluster, as it is or with other machines.

The work is bounded by the number of machines, and is done in a thread, one question at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from edgepp.errors import ModelError, PlanError, UsageError
from edgepp.http_api.failures import RequestError
from edgepp.model.catalogue.cards import catalogue
from edgepp.plan import hardware
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.describe_cluster import read_nodes
from edgepp.plan.forecast import forecast
from edgepp.plan.json_report import forecast_dict, unfit_dict
from edgepp.plan.layout import ClusterQuestion
from edgepp.plan.live_cluster import from_status
from edgepp.plan.machines import Workload
from edgepp.plan.planned_model import read_model, same_model
from edgepp.plan.quantities import parse_link

MAX_MACHINES = 8
_REQUESTS = (1, 2, 4, 8)
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_Positions = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class HypotheticalMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine that does not exist: its hardware by name, its memory, or both, as `edgepp plan --node` takes them."""

    hw: _Text | None = None
    mem: _Text | None = None
    name: _Text | None = None


class PlanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question to the planner."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    """The name of a card; None for the model that runs."""
    machines: Annotated[list[HypotheticalMachine], msgspec.Meta(max_length=MAX_MACHINES)] = []
    """Machines that join in thought."""
    without: Annotated[list[_Text], msgspec.Meta(max_length=64)] = []
    """Ids of nodes that leave in thought."""
    link: _Text | None = None
    """The links of the new machines, like ``1Gbit:0.3ms``; None for a usual network."""
    context: _Positions = 4096
    prompt: _Positions = 512
    answer: _Positions = 256
    policy: Literal["memory", "speed", "throughput"] | None = None
    """None for the policy of the cluster."""


def choices() -> dict[str, Any]:
    """The models that have a card, and the hardware that is known by name."""
    models = sorted(catalogue().values(), key=lambda card: card.bytes_total)
    return {
        "models": [
            {"name": one.name, "bytes": one.bytes_total, "layers": one.layers, "context": one.context} for one in models
        ],
        "hardware": [
            {"name": one.name, "title": one.title, "memory_gb": one.memory_gb}
            for one in hardware.catalogue().values()
            if one.dollars_per_hour is None  # chips that are rented are for slices
        ],
    }


def plan_answer(body: PlanBody, status: Mapping[str, Any]) -> dict[str, Any]:
    """The planner's answer as `edgepp plan --json` gives it; ``fits`` says whether the model fits at all.

    Raises:
        RequestError: the question names a model, hardware or size that there is not.
    """
    running = str(status.get("model") or "")
    try:
        model = read_model(_card_name(body.model) if body.model else running.partition("@")[0])
        spec = from_status(_without(status, body.without), model.size if same_model(running, model) else None)
        spec = _with_machines(spec, body)
        context = min(body.context, model.context)
        question = ClusterQuestion(
            model=model,
            workload=Workload(body.prompt, body.answer, _REQUESTS),
            context=context,
            max_sequences=int(status.get("max_sequences") or 1),
            policy=body.policy or status.get("policy", "memory"),
        )
        try:
            return forecast_dict(forecast(question, spec))
        except PlanError as error:
            return unfit_dict(question, error)
    except (UsageError, ModelError, PlanError) as error:
        raise RequestError("invalid_request", str(error), error.hint) from error


def _card_name(name: str) -> str:
    """``name`` if a card has it; other names would be looked up on this disk.

    Raises:
        ModelError: no card has this name.
    """
    if name not in catalogue():
        raise ModelError(
            f"there is no model called '{name:.200}'", "see /v1/cluster/choices for those that have a card"
        )
    return name


def _without(status: Mapping[str, Any], gone: list[str]) -> Mapping[str, Any]:
    """``status`` without some nodes; without their stages, what was measured of their links is unknown."""
    if not gone:
        return status
    left = {node["node"] for node in status["nodes"]} - set(gone)
    coordinator = {node["node"] for node in status["nodes"] if "coordinator" in node["roles"]}
    if coordinator & set(gone):
        raise UsageError("the coordinator cannot leave its own cluster", "leave it in")
    nodes = [node for node in status["nodes"] if node["node"] in left]
    return {**status, "nodes": nodes, "stages": [one for one in status["stages"] if one["node_id"] in left]}


def _with_machines(spec: ClusterSpec, body: PlanBody) -> ClusterSpec:
    """``spec`` with the machines of ``body``, whose names differ from all others, over its link."""
    fields = [{name: value for name in ("hw", "mem", "name") if (value := getattr(one, name))} for one in body.machines]
    link = parse_link(body.link) if body.link else None
    for node in read_nodes(fields):
        added = _renamed(node, {one.name for one in spec.nodes})
        links = {(one.name, added.name): link for one in spec.nodes} if link else {}
        spec = dataclasses.replace(spec, nodes=(*spec.nodes, added), named={**spec.named, **links})
    return spec


def _renamed(node: Node, taken: set[str]) -> Node:
    name, number = node.name, 2
    while name in taken:
        name, number = f"{node.name}-{number}", number + 1
    return dataclasses.replace(node, machine=dataclasses.replace(node.machine, node=name))
