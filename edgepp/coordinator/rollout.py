"""The rollout of the plan in force: loads on the members, their reports, and the pipeline over the loaded stages.

The coordinator's thread calls ``Rollout`` and sends its orders.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.draft_placement import DraftPlacement
from edgepp.coordinator.handover import Handover, RolloutOrder, RunningStage
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.coordinator.load_estimate import LoadEstimate
from edgepp.coordinator.load_tracker import host_id
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.pipeline_order import PipelineOrder, endpoint_of
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rank_loads import RankMeetings
from edgepp.coordinator.stage_losses import StageLosses
from edgepp.coordinator.stage_places import Place
from edgepp.coordinator.sum_measurements import SumMeasurements
from edgepp.events import LayersNotLoaded, OnEvent, PlanKept, PlanMade, PlanMissing
from edgepp.placement.values import LinkSpeed
from edgepp.wire.messages.nodes import Loaded, Loading, NotLoaded
from edgepp.wire.messages.rank_meetings import RankListens, SumMeasured

log = logging.getLogger("edgepp.coordinator")

_MAX_NAMES = 4
"""How many names of absent machines a message shows."""


StageReport = Loading | Loaded | NotLoaded | RankListens | SumMeasured
"""What members report of what they were ordered to compute."""


@dataclass(frozen=True)
class Progress:
    """The progress of one slot's load."""

    done_bytes: int
    total_bytes: int
    what: str
    """The node's name and what it does, such as ``fetching``."""


class Rollout:
    """Brings the members to the plan in force, one plan after another."""

    def __init__(
        self,
        planner: Planner,
        members: Membership,
        pipeline_manager: PipelineManager,
        answers: LiveAnswers,
        on_event: OnEvent,
        draft_model: str = "",
    ) -> None:
        """A member without layers guesses with ``draft_model``; none for an empty name."""
        self._planner = planner
        self._members = members
        self._pipeline_manager = pipeline_manager
        self._answers = answers
        self._on_event = on_event
        self._reason = planner.reason
        """The planner's reason after the last step; that of the beginning is no event."""
        self._num_finished = 0
        """Finished answers of which the planner knows."""
        self._losses = StageLosses(planner, members, pipeline_manager)
        self._handover = Handover()
        self._meetings = RankMeetings()
        self.sums = SumMeasurements(members, planner)
        self._told: list[RolloutOrder] = []
        """Where ranks listen, for the nodes of the other ranks; sent with the next orders."""
        self._explained = ""
        """Why there was no plan, as waiting questions were told."""
        self.drafts = DraftPlacement(members, self._is_spare, draft_model, on_event)
        self.progress: dict[tuple[str, int], Progress] = {}
        """The loads under way, by node and slot."""
        self.estimate = LoadEstimate()

    def step(self, now_s: float) -> list[RolloutOrder]:
        """Continue the rollout, with a new plan where the planner makes one; returns the orders to send."""
        planner = self._planner
        number, places = planner.plan_id, planner.places(self._members)
        if self._answers.num_finished != self._num_finished:
            self._num_finished = self._answers.num_finished
            planner.answer_finished()
        idle = not len(self._answers)
        measures = self.sums.step(now_s, idle=idle and not planner.is_loading(self._members))
        if (unreachable := self._losses.avoid_unreachable(now_s)) is not None:
            self._on_event(unreachable)
        planned = planner.decide(self._members, now_s, idle=idle)
        if planner.plan_id != number:
            self.progress.clear()
            self._meetings.clear()
            self._answers.last = None
            if self._pipeline_manager.latest is not None:  # else nothing runs over the former plan's stages
                planned = self._handover.hold_back(planned)
            self._losses.leave(places)
            self._report_plan()
        elif planner.reason != self._reason and planner.reason:
            self._on_event(PlanKept(planner.plan_version if planner.plan else None, planner.reason))
        self._reason = planner.reason
        orders: list[RolloutOrder] = [*planned, *measures, *self._told, *self._losses.restarts()]
        self._told = []
        self._pipeline_manager.set_shortage(planner.certain_shortage(self._members))
        self._update_phases()
        self._explain()
        self._ensure_pipeline()
        orders += self._hand_over()
        orders += self.drafts.step(now_s)
        planner.drafting = self.drafts.host
        self._pipeline_manager.use_drafter(self.drafts.endpoint)
        self.estimate.note(self._loaded_fraction(), now_s)
        return orders

    def _explain(self) -> None:
        """Report a loss, and let waiting questions show what they wait for now."""
        manager, planner = self._pipeline_manager, self._planner
        manager.report_loss()
        if manager.pipeline is not None:
            return
        if planner.plan is None:
            self._explained = planner.reason
            manager.explain(self._explained)
        elif self._explained and manager.reason == self._explained:
            self._explained = ""
            manager.explain("the layers are being loaded")

    def report(self, node: str, message: StageReport, now_s: float) -> None:
        """Take a member's report, unless the report cannot be true."""
        match message:
            case SumMeasured():
                self.sums.measured(node, message, now_s)
            case RankListens():
                if not self.sums.listens(node, message):
                    self._rank_listens(node, message, now_s)
            case _ if not self.drafts.report(node, message, now_s):
                self._load_reported(node, message, now_s)

    def _load_reported(self, node: str, message: Loading | Loaded | NotLoaded, now_s: float) -> None:
        member = self._members.get(node)
        if member is None or not self._planner.is_expected(self._members, node, message):
            log.info("ignored a %s of plan %d, slot %d by %s", type(message).__name__, *message[:2], node)
            return
        slot = (node, message.slot)
        match message:
            case Loading():
                self._planner.loads.progress(host_id(node, message.slot), message, now_s)
                self.progress[slot] = Progress(
                    message.done_bytes, message.total_bytes, f"{member.facts.name} {message.activity}"
                )
            case Loaded():
                self._loaded(member, message, now_s)
            case NotLoaded():
                self._lost(member, message, now_s)

    def _rank_listens(self, node: str, message: RankListens, now_s: float) -> None:
        """Take the report of a rank that listens for the others of its stage."""
        ranks = {place.rank: place for place in self._ranks_of(message.group)}
        mine = [rank for rank, place in ranks.items() if place.member.node == node]
        if not mine:
            log.info("ignored a rank of group %d on %s", message.group, node)
            return
        members = {rank: place.member for rank, place in ranks.items()}
        self._told += self._meetings.listens(message, mine[0], members)
        for rank in self._meetings.listening(message.group):
            self._planner.loads.waits(ranks[rank].host, now_s)

    def _ranks_of(self, group: int) -> list[Place]:
        """The places of the ranks of a group."""
        planner = self._planner
        stages = [n for n, _ in enumerate(planner.plan.stages if planner.plan else ()) if planner.group(n) == group]
        return [place for place in planner.places(self._members) if place.stage in stages]

    def _loaded(self, member: Member, message: Loaded, now_s: float) -> None:
        present = member.slot(message.slot)
        if present == message:
            return
        if present is not None and present.plan_id == message.plan_id:  # the report of its end was lost
            ended = "its stage process was restarted"
            self._lost(member, NotLoaded(message.plan_id, message.slot, ended, "", restarting=True), now_s)
        self.progress.pop((member.node, message.slot), None)
        self._members.loaded(member.node, message.slot, message)
        self._planner.loads.loaded(host_id(member.node, message.slot), now_s)

    def _lost(self, member: Member, report: NotLoaded, now_s: float) -> None:
        slot, reason = report.slot, report.reason
        self._losses.ended(member, report)
        self.progress.pop((member.node, slot), None)
        self._members.loaded(member.node, slot, None)
        if report.restarting:
            self._planner.loads.restarting(host_id(member.node, slot), now_s)
        else:
            self._planner.loads.failed(host_id(member.node, slot), reason, now_s)
        hint = "" if report.restarting else report.hint
        self._on_event(LayersNotLoaded(member.facts.name, reason, hint, report.restarting))

    @property
    def node_of_ended_stage(self) -> str:
        """The id of the node whose stage process the pipeline found to have ended, until that is mended; else empty."""
        return self._losses.node_of_ended_stage

    def slowest(self) -> str:
        """The name of the node that is furthest from having loaded its layers; empty if none loads."""
        loading = [
            (self._slot_fraction(place), place.member.facts.name)
            for place in self._planner.places(self._members)
            if place.loaded is None
        ]
        return min(loading)[1] if loading else ""

    def _loaded_fraction(self) -> float:
        """The loaded part of the plan's layers, from 0 to 1."""
        places = self._planner.places(self._members)
        done = sum(self._slot_fraction(place) * len(place.layers) for place in places)
        return done / max(1, sum(len(place.layers) for place in places))

    def _slot_fraction(self, place: Place) -> float:
        if place.loaded is not None:
            return 1.0
        progress = self.progress.get((place.member.node, place.slot))
        return min(1.0, progress.done_bytes / progress.total_bytes) if progress and progress.total_bytes else 0.0

    def waiting(self, away: Sequence[str]) -> str:
        """What answers wait for; empty while a pipeline is open. ``away`` names the paired machines that are away."""
        if self._pipeline_manager.pipeline is not None:
            return ""
        if self._planner.plan is None and away:
            shown = f"{', '.join(away[:_MAX_NAMES])}{', …' if len(away) > _MAX_NAMES else ''}"
            are, them = ("is", "it") if len(away) == 1 else ("are", "them")
            return f"{shown} {are} away; without {them}, {self._planner.reason}"
        loading = [
            f"{p.what} {100 * p.done_bytes // max(1, p.total_bytes)} %"
            for p in list(self.progress.values())
            if p.done_bytes < p.total_bytes
        ]
        return ", ".join([self._planner.reason or self._pipeline_manager.reason, *loading])

    def _is_spare(self, member: Member) -> bool:
        """Whether a member has no layers, also not of a former plan, and the others hold all of them."""
        planner = self._planner
        holds = any(place.member.node == member.node for place in planner.places(self._members))
        moved = self._pipeline_manager.runs_over(planner.plan_version)
        return (
            planner.plan is not None and planner.settled and moved and not holds and member.node != planner.coordinator
        )

    def _report_plan(self) -> None:
        if self._planner.plan is None:
            self._on_event(PlanMissing(self._planner.reason))
        else:
            places = self._planner.places(self._members)
            names = {n: " and ".join(p.member.facts.name for p in places if p.stage == n) for n, *_ in places}
            ranges = tuple((place.layers, names[place.stage]) for place in places if place.rank == 0)
            self._on_event(PlanMade(self._planner.plan_version, ranges, self._planner.reason))

    def _update_phases(self) -> None:
        """Make members ready that have loaded all of their layers."""
        missing = {place.member.node for place in self._planner.places(self._members) if place.loaded is None}
        for member in self._members.present:
            if member.phase is not MemberPhase.SUSPECT:
                self._members.assigned(member.node, complete=member.node not in missing)

    def _ensure_pipeline(self) -> None:
        if self._planner.complete(self._members):
            stages = self._planner.stages(self._members)
            self._losses.note_order(self._planner.places(self._members))
            endpoints = tuple(endpoint_of(member, loaded.port) for member, _, _, loaded in stages if loaded)
            here = self._members.get(self._planner.coordinator)
            order = PipelineOrder(self._planner.plan_version, endpoints, here.facts.addresses if here else "")
            self._pipeline_manager.ensure_open(order)
            self._learn_links([member for member, _, _, _ in stages])

    def _hand_over(self) -> list[RolloutOrder]:
        """The orders that are due once the pipeline runs over the stages of the plan in force."""
        planner = self._planner
        if self._pipeline_manager.latest is None or not self._pipeline_manager.runs_over(planner.plan_version):
            return []
        running = [
            RunningStage(place.member.node, place.slot, planner.plan_id, place.layers, place.rank)
            for place in planner.places(self._members)
        ]
        return self._handover.moved_to(running, planner.model)

    def _learn_links(self, stages: Sequence[Member]) -> None:
        """Keep the link speeds that the open pipeline measured, for the next plan."""
        pipeline = self._pipeline_manager.pipeline
        if pipeline is None or len(pipeline.stages) != len(stages):
            return
        nodes = [self._planner.coordinator, *(member.node for member in stages)]
        for sender, receiver, stage in zip(nodes, nodes[1:], pipeline.stages, strict=False):
            if sender != receiver and stage.bytes_per_s:
                self._planner.links[sender, receiver] = LinkSpeed(stage.hop_s, stage.bytes_per_s)
