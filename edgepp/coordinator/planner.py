"""Which plan is in force, and what each node has to load for it. Pure: members in, orders out.

A new plan is made when members come, go or change, once they have been quiet for a moment. The new plan takes effect at
once when it has to (a stage's node is gone), else when it is clearly better (``placement.replace``) and no answer is
under way. A slot whose loads fail is tried again (``LoadTracker``); while it keeps failing, other slots take its layers
if they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.load_tracker import STALLED_S, LoadTracker, host_id, split_host_id
from edgepp.coordinator.stage_hosts import StageHosts
from edgepp.errors import PlanError
from edgepp.layers import LayerRange
from edgepp.placement.place import place, replace
from edgepp.placement.types import LinkSpeed, PlacementRequest, Plan, StageHost
from edgepp.wire.messages.nodes import Load, Loaded, Loading, NotLoaded, Unload

QUIET_S = 1.0
"""How long members must be unchanged before a plan is made."""
RESTLESS_S = 5.0
"""How long after the first change a plan is made for members that never stop changing."""
START_WAIT_S = 4.0
"""How long after its start a coordinator waits for the nodes that it expects."""
MAX_BUSY_S = 30.0
"""How long a better plan waits for answers to end."""

Order = tuple[str, Load | Unload]
"""A node id, and the message to send to that node."""


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
    loads: LoadTracker = field(default_factory=LoadTracker)
    _began_s: float | None = None
    _seen: tuple[object, ...] = ()
    """The hosts of now: what a plan depends on."""
    _planned: tuple[object, ...] | None = None
    """The hosts for which the last plan was made."""
    _changed_s: float = 0.0
    _restless_s: float | None = None
    """The first change for which no plan was made yet."""
    _banned: tuple[str, ...] = ()
    """Hosts that are avoided for now because their loads failed."""
    _stage_hosts: StageHosts = field(init=False)

    def __post_init__(self) -> None:
        self._stage_hosts = StageHosts(self.request, self.coordinator)

    @property
    def plan_id(self) -> int:
        """The id of the newest plan in messages: no other start of the coordinator gives the same."""
        return self.base_plan_id + self.plan_version

    @property
    def reason(self) -> str:
        """Why there is no plan, or no better one; empty where nothing is wrong."""
        refused = "; ".join(self._stage_hosts.refused.values())
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
        hosts = StageHosts(request, self.coordinator).hosts(members.present)
        place(request, hosts, self.links, self.coordinator)

    def change_model(self, model: str, request: PlacementRequest) -> None:
        """Plan for another model from now on, with all nodes anew."""
        self.model, self.request = model, request
        self.plan, self.shortage, self.excluded = None, None, ""
        self.loads = LoadTracker()
        self._stage_hosts = StageHosts(request, self.coordinator)
        self._planned, self._banned = None, ()

    def certain_shortage(self, members: Membership) -> PlanError | None:
        """What is missing to hold the model, once every expected node is present and planned for; else None."""
        return self.shortage if self.plan is None and self.settled and self._all_present(members) else None

    @property
    def settled(self) -> bool:
        """Whether the present hosts have been planned for."""
        return self._planned is not None and self._planned == self._seen

    def why_excluded(self, node: str) -> str:
        """Why a node is left out of plans; empty where it is not."""
        if refusal := self._stage_hosts.refused.get(node):
            return refusal
        reasons = [self.loads.backoff.reason(host) for host in self._banned if split_host_id(host)[0] == node]
        return f"it failed to run its layers: {reasons[-1]}" if reasons else ""

    def decide(self, members: Membership, now_s: float, *, idle: bool) -> list[Order]:
        """Make a new plan if it is time to; returns the orders that are due. ``idle``: no answer is under way."""
        if self._began_s is None:
            self._began_s = self._changed_s = now_s
        self._fail_stalled(members, now_s)
        hosts = self._stage_hosts.hosts(members.present)
        self._banned = banned = tuple(host.id for host in hosts if self.loads.backoff.is_banned(host.id, now_s))
        self._note_hosts((*hosts, *banned, *self._stage_hosts.unfit), now_s)
        planned = {host for host, _ in self.plan.stages} if self.plan else set()
        broken = not planned <= {host.id for host in hosts}
        urgent = broken or not planned.isdisjoint(banned)
        if broken or (self._planned != self._seen and (urgent or self._is_time(members, now_s, idle=idle))):
            self._planned, self._restless_s = self._seen, None
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
        """Forgive all failures of the plan's stages: an answer was finished, so they all work."""
        for host, _ in self.plan.stages if self.plan else ():
            self.loads.backoff.clear(host)

    def stages(self, members: Membership) -> list[tuple[Member, int, LayerRange, Loaded | None]]:
        """Member, slot, layer range and finished load (None while loading) of each stage of the plan, in order."""
        found = []
        for host, layers in self.plan.stages if self.plan else ():
            node, slot = split_host_id(host)
            member = members.get(node)
            if member is not None:
                loaded = member.slot(slot)
                found.append((member, slot, layers, loaded if loaded and loaded.plan_id == self.plan_id else None))
        return found

    def complete(self, members: Membership) -> bool:
        """Whether every stage of the plan is loaded on a member that is joined or ready."""
        stages = self.stages(members)
        return bool(stages) and all(
            loaded is not None and member.phase in (MemberPhase.JOINED, MemberPhase.READY)
            for member, _, _, loaded in stages
        )

    def _all_present(self, members: Membership) -> bool:
        return self.expected_nodes <= {member.node for member in members.present}

    def _note_hosts(self, seen: tuple[object, ...], now_s: float) -> None:
        if seen != self._seen:
            self._seen, self._changed_s = seen, now_s
            self._restless_s = now_s if self._restless_s is None else self._restless_s
        if seen == self._planned:
            self._restless_s = None

    def _is_time(self, members: Membership, now_s: float, *, idle: bool) -> bool:
        """Whether changed members have waited long enough for a plan that is not urgent."""
        restless_s = now_s - (self._changed_s if self._restless_s is None else self._restless_s)
        quiet = now_s - self._changed_s >= QUIET_S or restless_s >= RESTLESS_S
        if self.plan is None:
            return quiet and (self._all_present(members) or now_s - (self._began_s or now_s) >= START_WAIT_S)
        return quiet and (idle or restless_s >= MAX_BUSY_S)

    def _replan(self, hosts: Sequence[StageHost], banned: Sequence[str], *, broken: bool) -> bool:
        """Make a plan, where possible without ``banned`` hosts; whether another plan is in force now."""
        self.shortage, self.excluded = None, ""
        self._stage_hosts.take_back()
        allowed = [host for host in hosts if host.id not in banned]
        try:
            plan = self._place(allowed)
        except PlanError as error:
            plan, self.shortage = None, error
        if plan is None and len(allowed) < len(hosts):  # a host that failed is better than no plan
            out = [host for host in hosts if host.id in banned]
            self.excluded = ", ".join(
                f"{host} cannot run its layers: {self.loads.backoff.reason(host.id)}" for host in out
            )
            try:
                plan = self._place(hosts)
            except PlanError as error:
                self.shortage, self.excluded = error, ""
        if plan is None and self.plan is not None and not broken:
            return False
        changed = plan != self.plan
        self.plan = plan
        self.plan_version += changed
        return changed

    def _place(self, hosts: Sequence[StageHost]) -> Plan:
        """A plan with as many of the pinned nodes as possible.

        Raises:
            PlanError: the hosts cannot hold the model.
        """
        try:
            return self._place_all(hosts)
        except PlanError as error:
            possible = self._stage_hosts.possible(hosts, error)
            if possible is None:
                raise
            return self._place_all(possible)

    def _place_all(self, hosts: Sequence[StageHost]) -> Plan:
        if self.plan is None:
            return place(self.request, hosts, self.links, self.coordinator)
        return replace(self.request, hosts, self.links, self.coordinator, self.plan)

    def _all_orders(self, members: Membership, now_s: float) -> list[Order]:
        """What a new plan orders: unload the slots that it does not use, load the others."""
        self.loads.clear()
        used = {host for host, _ in self.plan.stages} if self.plan else set()
        unloads: list[Order] = [
            (member.node, Unload(self.plan_id, slot))
            for member in members.present
            for slot in range(member.facts.stage_slots)
            if host_id(member.node, slot) not in used
        ]
        return unloads + [self._order(host, layers, now_s) for host, layers in (self.plan.stages if self.plan else ())]

    def _due_orders(self, members: Membership, now_s: float) -> list[Order]:
        """Loads to order again, since a message may be lost or the load has failed."""
        return [
            self._order(host, layers, now_s)
            for host, layers in self._missing(members)
            if self.loads.is_due(host, now_s)
        ]

    def _order(self, host: str, layers: LayerRange, now_s: float) -> Order:
        self.loads.order(host, now_s)
        node, slot = split_host_id(host)
        return node, Load(self.plan_id, slot, self.model, layers.start, layers.stop, self.exact, self.kv_bits)

    def _fail_stalled(self, members: Membership, now_s: float) -> None:
        """Count stalled loads as failed, so that a plan does not wait for them for ever."""
        for host, _ in self._missing(members):
            if self.loads.is_stalled(host, now_s):
                self.loads.failed(host, f"its load made no progress for {STALLED_S:.0f} s", now_s, final=True)

    def _missing(self, members: Membership) -> list[tuple[str, LayerRange]]:
        """The plan's hosts that have not loaded their layers, on members that can be reached."""
        return [
            (host_id(member.node, slot), layers)
            for member, slot, layers, loaded in self.stages(members)
            if loaded is None and member.phase not in (MemberPhase.SUSPECT, MemberPhase.GONE)
        ]
