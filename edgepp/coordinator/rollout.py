"""Bringing the members to the plan in force: what they are told to load, what they have loaded, the pipeline over it.

The coordinator's thread drives it and sends what it orders.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.answers import AnswerService
from edgepp.coordinator.pipeline_manager import PipelineManager, PipelineOrder
from edgepp.coordinator.planner import Order, Planner
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError, StageLost
from edgepp.events import LayersNotLoaded, OnEvent, PlanKept, PlanMade, PlanMissing
from edgepp.layers import LayerRange
from edgepp.placement.types import LinkSpeed
from edgepp.wire.messages import Loaded, Loading, NotLoaded
from edgepp.wire.transport import Address

log = logging.getLogger("edgepp.coordinator")

_SHOWN = 4
"""Names of machines that are away to show."""

Stages = Sequence[tuple[Member, int, LayerRange, Loaded | None]]
"""A plan's stages as ``Planner.stages`` gives them."""


@dataclass(frozen=True)
class Progress:
    """How far a slot's load is."""

    done: int
    total: int
    what: str


class Rollout:
    """Brings the members to one plan after another."""

    def __init__(
        self,
        director: Planner,
        members: Membership,
        serving: PipelineManager,
        answers: AnswerService,
        on_event: OnEvent,
    ) -> None:
        self._director = director
        self._members = members
        self._serving = serving
        self._answers = answers
        self._on_event = on_event
        self._reason = ""
        self._done = 0
        """AnswerService that were finished when the director was last told."""
        self._names: dict[tuple[str, int], str] = {}
        """What the stages of the plan that was complete last are called, by node and slot."""
        self.progress: dict[tuple[str, int], Progress] = {}
        """Of the loads under way, by node and slot."""

    def step(self, now_s: float) -> list[Order]:
        """Go on with the plan, or with a new one; what to order."""
        director = self._director
        number, stages = director.number, director.stages(self._members)
        if self._answers.done != self._done:
            self._done = self._answers.done
            director.answered()
        orders = director.decide(self._members, now_s, idle=not len(self._answers))
        if director.number != number:
            self.progress.clear()
            self._answers.last = None
            why = "the layers are being loaded" if director.plan else director.reason
            self._serving.shut(why, self._replaced(stages))
            self._tell_plan()
        elif director.reason != self._reason and director.reason:
            self._on_event(PlanKept(director.count if director.plan else None, director.reason))
        self._reason = director.reason
        self._serving.lacks(director.lacking(self._members))
        self._assign()
        self._keep_serving()
        return orders

    def heard(self, node: str, message: Loading | Loaded | NotLoaded, now_s: float) -> None:
        """Take what a member says of its loads, if it was told to load that and it can be true now."""
        member = self._members.get(node)
        if member is None or not self._director.believes(self._members, node, message):
            log.info("a %s of plan %d, slot %d by %s is passed over", type(message).__name__, *message[:2], node)
            return
        slot = (node, message.slot)
        match message:
            case Loading():
                self._director.progress(node, message, now_s)
                self.progress[slot] = Progress(
                    message.done_bytes, message.total_bytes, f"{member.facts.name} {message.activity}"
                )
            case Loaded():
                self._loaded(member, message, now_s)
            case NotLoaded():
                self._lost(member, message.slot, message.reason, message.hint, now_s)

    def _loaded(self, member: Member, message: Loaded, now_s: float) -> None:
        present = member.slot(message.slot)
        if present == message:
            return
        if present is not None and present.plan_version == message.plan_version:  # that it ended was lost on the way
            self._lost(member, message.slot, "its stage process was started anew", "", now_s)
        self.progress.pop((member.node, message.slot), None)
        self._members.loaded(member.node, message.slot, message)
        self._director.loaded(member.node, message.slot, now_s)

    def _lost(self, member: Member, slot: int, reason: str, hint: str, now_s: float) -> None:
        """A slot could not load, or its stage ended: what was being answered ends by that stage's name."""
        name = self._name(member, slot)
        self.progress.pop((member.node, slot), None)
        self._members.loaded(member.node, slot, None)
        self._director.failed(member.node, slot, reason, now_s)
        self._serving.shut(f"{name}: {reason}", StageLost(f"{name} is gone: {reason}", hint or "ask again"))
        self._on_event(LayersNotLoaded(member.facts.name, reason, hint))

    def _name(self, member: Member, slot: int) -> str:
        """A stage of the plan as people are told of it, in the words of ``StageInfo``."""
        for index, (other, its_slot, layers, loaded) in enumerate(self._director.stages(self._members)):
            if (other.node, its_slot) == (member.node, slot):
                return _stage_name(index, member, layers, loaded)
        return f"slot {slot} of node {member.facts.name}"

    def _replaced(self, stages: Stages) -> EdgeppError:
        """Why what was answered over these ``stages`` ends now that another plan is in force."""
        for index, (member, slot, layers, _) in enumerate(stages):
            if member.phase is MemberPhase.GONE or slot >= member.facts.stage_slots:
                name = self._names.get((member.node, slot), _stage_name(index, member, layers, None))
                how = member.went if member.phase is MemberPhase.GONE else "offers it no longer"
                return StageLost(f"{name} is gone: {member.facts.name} {how}", "ask again: the others take its layers")
        if self._director.left_out or not self._director.plan:
            return EdgeppError(f"the cluster cannot go on: {self._director.reason}", "see `edgepp status`")
        return EdgeppError(f"the layers were divided anew while this was answered: {self._places()}", "ask again")

    def waiting(self, away: Sequence[str]) -> str:
        """What answers wait for; empty where there is a pipeline. ``away`` names the paired machines that are away."""
        if self._serving.pipeline is not None:
            return ""
        if self._director.plan is None and away:
            shown = f"{', '.join(away[:_SHOWN])}{', …' if len(away) > _SHOWN else ''}"
            are, them = ("is", "it") if len(away) == 1 else ("are", "them")
            return f"{shown} {are} away; without {them}, {self._director.reason}"
        loading = [
            f"{p.what} {100 * p.done // max(1, p.total)} %" for p in list(self.progress.values()) if p.done < p.total
        ]
        return ", ".join([self._director.reason or self._serving.reason, *loading])

    def _tell_plan(self) -> None:
        if self._director.plan is None:
            self._on_event(PlanMissing(self._director.reason))
        else:
            stages = self._director.stages(self._members)
            places = tuple((layers, member.facts.name) for member, _, layers, _ in stages)
            self._on_event(PlanMade(self._director.count, places, self._director.reason))

    def _places(self) -> str:
        stages = self._director.stages(self._members)
        return ", ".join(f"layers {layers} on {member.facts.name}" for member, _, layers, _ in stages)

    def _assign(self) -> None:
        """Let members be ready once they have loaded all that the plan wants of them."""
        missing = {member.node for member, _, _, loaded in self._director.stages(self._members) if loaded is None}
        for member in self._members.present:
            if member.phase is not MemberPhase.SUSPECT:
                self._members.assigned(member.node, complete=member.node not in missing)

    def _keep_serving(self) -> None:
        if self._director.complete(self._members):
            stages = self._director.stages(self._members)
            self._names = {
                (member.node, slot): _stage_name(index, member, layers, loaded)
                for index, (member, slot, layers, loaded) in enumerate(stages)
            }
            endpoints = tuple(_endpoint(member, loaded.port) for member, _, _, loaded in stages if loaded)
            self._serving.keep(PipelineOrder(self._director.count, endpoints))
            self._learn_links([member for member, _, _, _ in stages])

    def _learn_links(self, stages: Sequence[Member]) -> None:
        """Keep what the open pipeline measured between its stages, for the next plan."""
        pipeline = self._serving.pipeline
        if pipeline is None or len(pipeline.stages) != len(stages):
            return
        nodes = [self._director.coordinator, *(member.node for member in stages)]
        for one, other, stage in zip(nodes, nodes[1:], pipeline.stages, strict=False):
            if one != other and stage.bytes_per_s:
                self._director.links[one, other] = LinkSpeed(stage.hop_s, stage.bytes_per_s)


def _stage_name(index: int, member: Member, layers: LayerRange, loaded: Loaded | None) -> str:
    where = f" at {Address(member.host, loaded.port)}" if loaded else ""
    return f"stage {index} (layers {layers}) on node {member.facts.name}{where}"


def _endpoint(member: Member, port: int) -> Endpoint:
    """Where a member's stage may be reached: the address that it is heard from first."""
    hosts = dict.fromkeys((member.host, *filter(None, member.facts.addresses.split(","))))
    return Endpoint(tuple(Address(host, port) for host in hosts), member.key)
