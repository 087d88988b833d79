"""Stages that the pipeline has lost: the pause of answers, and the restart of a stage that hangs."""

from __future__ import annotations

from collections.abc import Sequence

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.load_tracker import host_id
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.pipeline_order import endpoint_of
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.stage_places import Place
from edgepp.engine.stage_handshake import Endpoint, StageUnreached, StageUnusable
from edgepp.errors import EdgeppError, NotReady, StageLost
from edgepp.events import LayersNotLoaded
from edgepp.wire.address import Address
from edgepp.wire.messages.nodes import NotLoaded, Restart

_OPEN_PORTS = "allow edgepp in that machine's firewall, or give its stage a port with `edgepp join --listen`"
_RESTART = "start `edgepp join` again on that machine; if it stays so, `edgepp revoke` its node"


class StageLosses:
    """The losses of stages of the plan in force. Belongs to the coordinator's thread."""

    def __init__(self, planner: Planner, members: Membership, pipeline_manager: PipelineManager) -> None:
        self._planner = planner
        self._members = members
        self._pipeline_manager = pipeline_manager
        self._ordered = 0
        """The version of the plan whose pipeline was ordered last."""
        self._answered: StageLost | None = None
        """The loss of a hanging stage that was answered by an order to restart it."""
        self._names: dict[tuple[str, int], str] = {}
        """The names of the stages of the last complete plan, by node and slot."""

    def note_order(self, places: Sequence[Place]) -> None:
        """Note that a pipeline over the ``places`` of the plan in force is ordered."""
        self._ordered = self._planner.plan_version
        self._names = {(place.member.node, place.slot): self._name(place) for place in places}

    def ended(self, member: Member, report: NotLoaded) -> None:
        """Let answers pause, naming the stage, since a slot's stage ended or could not load.

        Answers that still run over the stages of a former plan are left alone. Call this before the member forgets
        what the slot had loaded.
        """
        if not self._is_ordered:
            return
        index, name = self._find(member, report.slot)
        lost = StageLost(f"{name} is gone: {report.reason}", report.hint or "ask again", gone=index)
        self._pipeline_manager.suspend(f"{name}: {report.reason}", lost)

    def restarts(self) -> list[tuple[str, Restart]]:
        """The order to restart the stage that the pipeline found to hang; given once per loss."""
        loss, stages = self._loss, self._planner.stages(self._members)
        if loss is None or loss.hanging is None or loss is self._answered:
            return []
        self._answered = loss
        if not self._is_ordered or loss.hanging >= len(stages):
            return []
        member, slot, _, loaded = stages[loss.hanging]
        return [(member.node, Restart(loaded.plan_id, slot, loaded.pid))] if loaded is not None else []

    @property
    def node_of_ended_stage(self) -> str:
        """The id of the node whose stage process the pipeline found to have ended, until that is mended; else empty."""
        loss, stages = self._loss, self._planner.stages(self._members)
        if loss is None or loss.gone is None or not self._is_ordered or loss.gone >= len(stages):
            return ""
        return stages[loss.gone][0].node

    def avoid_unreachable(self, now_s: float) -> LayersNotLoaded | None:
        """Let the cluster do without a node that has loaded a stage and cannot be reached there, or without a link.

        All slots of the node are avoided: what closes one port closes all, and each slot would cost further tries.
        Returns what is wrong, once each time that a host or link is banned; None else.
        """
        unreachable = self._pipeline_manager.unreachable
        if unreachable is None or not self._is_ordered:
            return None
        place = self._place_at(unreachable.endpoint)
        if place is None:
            return None
        if unreachable.sender is not None:
            return self._avoid_link(unreachable, self._place_at(unreachable.sender), place, now_s)
        reason, hint = f"{self._name(place)} does not answer, although the node itself does", _OPEN_PORTS
        if isinstance(unreachable, StageUnusable):
            reason, hint = f"{self._name(place)} cannot be used: {unreachable}", _RESTART
        self._pipeline_manager.explain(reason)
        backoff = self._planner.loads.backoff
        if backoff.is_banned(place.host, now_s):
            return None
        for slot in range(place.member.facts.stage_slots):
            backoff.unreachable(host_id(place.member.node, slot), reason, now_s)
        return LayersNotLoaded(place.member.facts.name, reason, hint)

    def _avoid_link(
        self, unreachable: StageUnreached, sender: Place | None, receiver: Place, now_s: float
    ) -> LayersNotLoaded | None:
        if sender is None:
            return None
        reason = str(unreachable)
        self._pipeline_manager.explain(f"{reason}; {unreachable.hint}", unreachable)
        link = sender.member.node, receiver.member.node
        if link in self._planner.link_bans.banned(now_s):
            return None
        self._planner.link_bans.failed(link, reason, now_s)
        return LayersNotLoaded(receiver.member.facts.name, reason, unreachable.hint)

    def _place_at(self, endpoint: Endpoint) -> Place | None:
        """The place of the plan whose process is at ``endpoint``."""
        for place in self._planner.places(self._members):
            if place.loaded is not None and endpoint_of(place.member, place.loaded.port) == endpoint:
                return place
        return None

    def leave(self, places: Sequence[Place]) -> None:
        """Let answers pause that run over ``places`` of the former plan, or end where no plan follows.

        They run on where all of these are still there, until those of the new plan are loaded.
        """
        gone, reason = self._gone(places), self._planner.reason
        if self._planner.plan is None:
            error: EdgeppError = NotReady(f"the cluster cannot continue: {reason}", "see `edgepp status`")
            if gone:
                error = StageLost(
                    f"{gone}, and the other nodes cannot hold the model: {reason}",
                    "ask again when more memory or another machine is there; see `edgepp status`",
                )
            self._pipeline_manager.suspend(reason, error)
            self._pipeline_manager.end_answers(error)
        elif gone:
            lost = StageLost(gone, "ask again: the other nodes take its layers")
            self._pipeline_manager.suspend("the layers are being loaded", lost)

    @property
    def _is_ordered(self) -> bool:
        """Whether a pipeline over the plan in force was ordered: else answers run over the stages of a former plan."""
        return self._ordered == self._planner.plan_version

    @property
    def _loss(self) -> StageLost | None:
        """Why the pipeline is suspended, if a stage was lost."""
        pipeline = self._pipeline_manager.latest
        loss = pipeline.suspended if pipeline is not None else None
        return loss if isinstance(loss, StageLost) else None

    def _find(self, member: Member, slot: int) -> tuple[int | None, str]:
        """The place of a slot's stage in the plan, None for none, and its name as ``StageInfo`` prints it."""
        for place in self._planner.places(self._members):
            if (place.member.node, place.slot) == (member.node, slot):
                return place.stage, self._name(place)
        return None, f"slot {slot} of node {member.facts.name}"

    def _name(self, place: Place) -> str:
        """The name of a stage as ``StageInfo`` prints it; of a stage of several ranks, with the rank."""
        if place.rank == 0 and not self._planner.group(place.stage):
            return _stage_name(place)
        return f"rank {place.rank} of {_stage_name(place._replace(loaded=None))}"

    def _gone(self, places: Sequence[Place]) -> str:
        """Sentence about the first of the ``places`` of the former plan that is gone; empty where all are present."""
        for place in places:
            member = place.member
            if member.phase is MemberPhase.GONE or place.slot >= member.facts.stage_slots:
                name = self._names.get((member.node, place.slot), _stage_name(place._replace(loaded=None)))
                how = member.gone_reason if member.phase is MemberPhase.GONE else "offers it no longer"
                return f"{name} is gone: {member.facts.name} {how}"
        return ""


def _stage_name(place: Place) -> str:
    where = f" at {Address(place.member.host, place.loaded.port)}" if place.loaded else ""
    return f"stage {place.stage} (layers {place.layers}) on node {place.member.facts.name}{where}"
