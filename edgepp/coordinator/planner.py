"""The plan in force, and the loads that nodes are ordered for it. Pure: members in, orders out.

A new plan is made when members come, go or change, once they have been quiet for a moment. The new plan takes effect at
once when it has to (a stage's node is gone), else when it is clearly better (``placement.replace``) and no answer is
under way. A slot whose loads fail is tried again (``LoadTracker``); while it keeps failing, other slots take its layers
if they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.cluster.membership import Member, Membership
from edgepp.coordinator.link_bans import LinkBans, NodeLink
from edgepp.coordinator.load_orders import LoadOrders, Order, unload_orders
from edgepp.coordinator.load_tracker import STALLED_S, LoadTracker, host_id, split_host_id
from edgepp.coordinator.plan_search import PlanSearch
from edgepp.coordinator.plan_timing import PlanTiming
from edgepp.coordinator.rank_loads import part_ids
from edgepp.coordinator.stage_hosts import StageHosts
from edgepp.coordinator.stage_places import Place, are_complete, missing, places_of, stages_of
from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.placement.groups import parts_of
from edgepp.placement.place import place
from edgepp.placement.values import LinkSpeed, PlacementRequest, Plan, StageHost
from edgepp.wire.messages.nodes import Loaded, Loading, NotLoaded


@dataclass
class Planner:
    """Keeps a plan in force over changing members."""

    request: PlacementRequest
    model: str
    exact: bool
    coordinator: str
    """The coordinator's node id."""
    kv_bits: int
    """Bits per key or value in the KV cache; 0 for the backends' own floats."""
    base_plan_id: int
    """The id before the first plan's: random, so that a restarted coordinator repeats no plan id."""
    plan_version: int = 0
    """How many plans there have been."""
    expected_nodes: frozenset[str] = frozenset()
    """Nodes that belong to the cluster, present or not: a coordinator waits for them for a moment when it starts."""
    plan: Plan | None = None
    shortage: PlanError | None = None
    """Why the members cannot hold the model, or not in a better way than now; None where they can."""
    excluded: str = ""
    """Which slots are excluded because their loads fail, and why."""
    links: dict[tuple[str, str], LinkSpeed] = field(default_factory=dict)
    """The link speeds that were measured so far, by the node ids of both ends."""
    sums: dict[tuple[str, str], LinkSpeed] = field(default_factory=dict)
    """The cost of a sum over two nodes as it was measured, by their ids."""
    measuring: bool = False
    """Whether costs of sums are being measured, for which a plan that is not urgent waits."""
    loads: LoadTracker = field(default_factory=LoadTracker)
    link_bans: LinkBans = field(default_factory=LinkBans)
    drafting: str = ""
    """Host id of the slot that drafts, which no plan unloads; empty for none."""
    _timing: PlanTiming = field(default_factory=PlanTiming)
    _banned: tuple[str, ...] = ()
    """Hosts that are avoided for now because their loads failed."""
    _banned_links: tuple[NodeLink, ...] = ()
    """Links that are avoided for now because stages could not open them."""
    _failure: PlanError | None = None
    """What ``certain_shortage`` says of a host that fails again and again; None where no such host is needed."""
    _stage_hosts: StageHosts = field(init=False)

    def __post_init__(self) -> None:
        self._stage_hosts = StageHosts(self.request, self.coordinator, self.sums)

    @property
    def plan_id(self) -> int:
        """The id of the newest plan in messages: no other start of the coordinator gives the same."""
        return self.base_plan_id + self.plan_version

    @property
    def reason(self) -> str:
        """Why there is no plan, or no better one; empty where nothing is wrong."""
        refused = "; ".join([*self._stage_hosts.refused.values(), *(why for _, why in self.avoided_links)])
        if self.shortage is None:
            return refused or ("" if self.plan is not None else "no node has joined yet")
        text = f"{self.shortage}; {self.shortage.hint}" if self.shortage.hint else str(self.shortage)
        out = "; ".join(filter(None, (refused, self.excluded)))
        return f"{out}; without it, {text}" if out else text

    def check(self, request: PlacementRequest, members: Membership) -> None:
        """Check that the members could hold another model, or this one with other sizes.

        Raises:
            PlanError: the members cannot; the hint says what would help.
        """
        hosts = StageHosts(request, self.coordinator, self.sums).hosts(members.present)
        place(request, hosts, self.links, self.coordinator)

    def change_model(self, model: str, request: PlacementRequest) -> None:
        """Plan for another model from now on, with all nodes again."""
        self.model, self.request = model, request
        self.plan, self.shortage, self.excluded = None, None, ""
        self.loads = LoadTracker()
        self._stage_hosts = StageHosts(request, self.coordinator, self.sums)
        self._timing.plan_anew()
        self._banned = ()

    def certain_shortage(self, members: Membership) -> PlanError | None:
        """Why no plan can work now, once every expected node is present and planned for; None where one may.

        Memory is missing; or a host failed to load its layers again and again, and no other host can take them.
        """
        if not self.settled or not self._all_present(members):
            return None
        return self.shortage if self.plan is None else self._failing(members)

    def _failing(self, members: Membership) -> PlanError | None:
        """Why the plan in force cannot work: a banned host has not loaded. The same object while it lasts."""
        failing = [place for place in self._missing(members) if place.host in self._banned]
        if not failing:
            self._failure = None
        elif self._failure is None:
            member, layers = failing[0].member, failing[0].layers
            reason = self.loads.backoff.reason(failing[0].host)
            self._failure = PlanError(
                f"{member.facts.name} cannot run layers {layers}, and no other machine can: {reason}",
                f"read what edgepp says on {member.facts.name}; it is tried again from time to time",
            )
        return self._failure

    @property
    def settled(self) -> bool:
        """Whether the present hosts have been planned for."""
        return self._timing.settled

    def why_excluded(self, node: str) -> str:
        """Why a node is left out of plans; empty where it is not."""
        if refusal := self._stage_hosts.refused.get(node):
            return refusal
        reasons = [self.loads.backoff.reason(host) for host in self._banned if split_host_id(host)[0] == node]
        if reasons:
            return f"it failed to run its layers: {reasons[-1]}"
        return next((self.link_bans.reason(link) for link in self._banned_links if node in link), "")

    @property
    def avoided_links(self) -> list[tuple[NodeLink, str]]:
        """The links between nodes that are avoided for now, each with the reason."""
        return [(link, self.link_bans.reason(link)) for link in self._banned_links]

    def decide(self, members: Membership, now_s: float, *, idle: bool) -> list[Order]:
        """Make a new plan if it is time to; returns the orders that are due. ``idle``: no answer is under way."""
        self._fail_stalled(members, now_s)
        hosts = self._stage_hosts.hosts(members.present)
        present = [part for host in hosts for part in part_ids(host.id)]
        self.loads.note_lost(self._used, members, now_s)
        self._banned = banned = tuple(part for part in present if self.loads.backoff.is_banned(part, now_s))
        self._banned_links = self.link_bans.banned(now_s)
        seen = (*hosts, *banned, *self._banned_links, *self._stage_hosts.unfit, *sorted(self.sums.items()))
        self._timing.note(seen, now_s)
        planned = self._used
        broken = not planned <= set(present)
        urgent = broken or not planned.isdisjoint(banned) or self._search.crosses_banned(self.plan)
        if broken or (not self.settled and (urgent or self._is_time(members, now_s, idle=idle))):
            self._timing.planned()
            if self._replan(hosts, banned, broken=broken):
                return self._all_orders(members, now_s)
        return self._due_orders(members, now_s)

    def is_expected(self, members: Membership, node: str, report: Loading | Loaded | NotLoaded) -> bool:
        """Whether a report can be true: the node was ordered this load by this plan, and had not finished it before."""
        host = host_id(node, report.slot)
        load, member = self.loads.get(host), members.get(node)
        if report.plan_id != self.plan_id or load is None or member is None:
            return False
        loaded = member.slot(report.slot)
        is_loaded = loaded is not None and loaded.plan_id == report.plan_id
        return load.under_way or (is_loaded and not isinstance(report, Loading))

    def answer_finished(self) -> None:
        """Forgive all failures of the plan's stages and links: an answer was finished, so they all work."""
        for host in self._used:
            self.loads.backoff.clear(host)
        if self.plan is not None:
            self.link_bans.works(self.plan)

    def places(self, members: Membership) -> list[Place]:
        """Where each process of each stage of the plan runs, by stage and rank."""
        return places_of(self.plan, self.plan_id, members)

    def group(self, stage: int) -> int:
        """The id of the ranks of a stage of the plan; 0 for a stage of one process."""
        if self.plan is None:
            return 0
        return self._load_orders(self.plan).load(stage, rank=0).group

    def weights(self, stage: int) -> tuple[int, ...]:
        """Weights by which the ranks of a stage of the plan share its layers, by rank; empty without a plan."""
        return tuple(part.weight for part in parts_of(self.plan.stages[stage][0])) if self.plan else ()

    def stages(self, members: Membership) -> list[tuple[Member, int, LayerRange, Loaded | None]]:
        """Member, slot, layer range and finished load (None while loading) of each stage of the plan, in order.

        Of a stage of several ranks, member and slot of rank 0; it is loaded when all ranks are.
        """
        return stages_of(self.places(members))

    def complete(self, members: Membership) -> bool:
        """Whether every stage of the plan is loaded on a member that is joined or ready."""
        return are_complete(self.places(members))

    def is_loading(self, members: Membership) -> bool:
        """Whether a member that can be reached loads layers of the plan."""
        return bool(self._missing(members))

    @property
    def _used(self) -> set[str]:
        """Host ids of the slots that the plan uses."""
        return {part for host, _ in self.plan.stages for part in part_ids(host)} if self.plan else set()

    def _all_present(self, members: Membership) -> bool:
        return self.expected_nodes <= {member.node for member in members.present}

    def _is_time(self, members: Membership, now_s: float, *, idle: bool) -> bool:
        """Whether changed members have waited long enough for a plan that is not urgent."""
        if self.plan is None:
            goes_on = any(member.holds_layers for member in members.present)
            return self._timing.is_time_for_first(now_s, all_present=self._all_present(members), goes_on=goes_on)
        return self._timing.is_time_for_better(now_s, idle=idle and not self.measuring)

    def _replan(self, hosts: Sequence[StageHost], banned: Sequence[str], *, broken: bool) -> bool:
        """Make a plan, where possible without ``banned`` hosts; whether another plan is in force now."""
        self.shortage, self.excluded = None, ""
        self._stage_hosts.take_back()
        allowed = [host for host in hosts if not set(part_ids(host.id)) & set(banned)]
        try:
            plan = self._search.best(allowed)
        except PlanError as error:
            plan, self.shortage = None, error
        if plan is None and len(allowed) < len(hosts):  # a host that failed is better than no plan
            self.excluded = ", ".join(
                f"{host} cannot run its layers: {self.loads.backoff.reason(part)}"
                for host in hosts
                for part in part_ids(host.id)
                if part in banned
            )
            try:
                plan = self._search.best(hosts)
            except PlanError as error:
                self.shortage, self.excluded = error, ""
        if plan is None and self.plan is not None and not broken:
            return False
        changed = plan != self.plan
        self.plan = plan
        self.plan_version += changed
        return changed

    @property
    def _search(self) -> PlanSearch:
        """The search for the next plan."""
        return PlanSearch(
            self.request, self.links, self.sums, self.coordinator, self._stage_hosts, self.plan, self._banned_links
        )

    def _all_orders(self, members: Membership, now_s: float) -> list[Order]:
        """What a new plan orders: unload the slots that the plan does not use, load the others."""
        self.loads.clear()
        unloads = unload_orders(self.plan_id, members.present, {*self._used, self.drafting})
        stages = self.plan.stages if self.plan else ()
        ranks = [(stage, rank) for stage, (host, _) in enumerate(stages) for rank in range(len(part_ids(host)))]
        return unloads + self._order(ranks, now_s)

    def _due_orders(self, members: Membership, now_s: float) -> list[Order]:
        """Loads to order again, since a message may be lost or the load has failed."""
        missing = self._missing(members)
        return self._order([(at.stage, at.rank) for at in missing if self.loads.is_due(at.host, now_s)], now_s)

    def _order(self, ranks: Sequence[tuple[int, int]], now_s: float) -> list[Order]:
        """Load orders for processes of the plan, given as stage and rank."""
        if self.plan is None:
            return []
        orders = self._load_orders(self.plan)
        for stage, rank in ranks:
            self.loads.order(orders.host(stage, rank), now_s)
        return [orders.order(stage, rank) for stage, rank in ranks]

    def _load_orders(self, plan: Plan) -> LoadOrders:
        return LoadOrders(plan, self.plan_id, self.model, self.exact, self.kv_bits, self.request.size.layers)

    def _fail_stalled(self, members: Membership, now_s: float) -> None:
        """Count stalled loads as failed, so that a plan does not wait for them for ever."""
        for late in self._missing(members):
            if self.loads.is_stalled(late.host, now_s):
                self.loads.failed(late.host, f"its load made no progress for {STALLED_S:.0f} s", now_s, final=True)

    def _missing(self, members: Membership) -> list[Place]:
        """The places of the plan that have not loaded their layers, on members that can be reached."""
        return missing(self.places(members))
