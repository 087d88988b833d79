"""Which plan is in force, and what has to be loaded for it. Pure: members in, orders out.

A plan is made anew when members come, go or change, once things have been quiet for a moment; it is put into force when
it must be (a stage's node is gone) or when it is clearly better (``placement.replace``) and nobody is being answered.
A slot that fails is tried again, after waits that grow from its last failure and start over once it has worked
(``trouble``); while it keeps failing, others do its work if they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.failure_backoff import FailureBackoff
from edgepp.coordinator.stage_hosts import StageHosts
from edgepp.errors import PlanError
from edgepp.layers import LayerRange
from edgepp.placement.place import place, replace
from edgepp.placement.types import LinkSpeed, PlacementRequest, Plan, StageHost
from edgepp.wire.messages import Load, Loaded, Loading, NotLoaded, Unload

QUIET_S = 1.0
"""How long members must not have changed before a plan is made."""
RESTLESS_S = 5.0
"""The same for members that never stop changing, from the first change on."""
GATHER_S = 4.0
"""How long, after its start, the coordinator waits for the members that it knows."""
PATIENCE_S = 30.0
"""How long a better plan waits for answers to end."""
AGAIN_S = 5.0
"""A load of which nothing is heard for so long is ordered again."""
STALLED_S = 120.0
"""A load that has come no further for so long has failed."""

Order = tuple[str, Load | Unload]
"""What to send, and to which node."""


@dataclass
class _Load:
    """What a slot was told to load, as far as it has come."""

    ordered_s: float
    """When it is taken as ordered last: later where it reported progress, or is to wait."""
    moved_s: float
    """When it last came any further."""
    at: tuple[str, int] = ("", -1)
    """What it reported last: what is being done, and how many bytes of it."""
    under_way: bool = True
    """Ordered, and neither loaded nor failed since."""


@dataclass
class Planner:
    """Keeps a plan in force over changing members."""

    want: PlacementRequest
    model: str
    exact: bool
    coordinator: str
    kv_bits: int
    """Bits of a key or value in the KV cache; 0 for the backends' own floats."""
    base: int
    """Plans are numbered from here on the wire, so that a restarted coordinator repeats no number."""
    count: int = 0
    """How many plans there have been."""
    known: frozenset[str] = frozenset()
    """Nodes that belong to the cluster, present or not: a start waits a moment for them."""
    plan: Plan | None = None
    shortage: PlanError | None = None
    """Why the members cannot hold the model, or not in a better way than they do; None where they can."""
    left_out: str = ""
    """Which slots are left out for now, since they fail, and why."""
    links: dict[tuple[str, str], LinkSpeed] = field(default_factory=dict)
    """As measured so far, by node ids."""
    trouble: FailureBackoff = field(default_factory=FailureBackoff)
    _began_s: float | None = None
    _seen: tuple[object, ...] = ()
    _planned: tuple[object, ...] | None = None
    _changed_s: float = 0.0
    _restless_s: float | None = None
    """Since when members have changed without a plan being made."""
    _loads: dict[str, _Load] = field(default_factory=dict)
    """By host of the plan."""
    _barred: tuple[str, ...] = ()
    """Hosts that are left out for now, since they failed."""
    _offers: StageHosts = field(init=False)

    def __post_init__(self) -> None:
        self._offers = StageHosts(self.want, self.coordinator)

    @property
    def number(self) -> int:
        """The newest plan's number on the wire."""
        return self.base + self.count

    @property
    def reason(self) -> str:
        """Why there is no plan, or no better one; empty where there is nothing to say."""
        unfit = "; ".join(self._offers.refused.values())
        if self.shortage is None:
            return unfit or ("" if self.plan is not None else "no node has joined yet")
        text = f"{self.shortage}; {self.shortage.hint}" if self.shortage.hint else str(self.shortage)
        out = "; ".join(filter(None, (unfit, self.left_out)))
        return f"{out}; without it, {text}" if out else text

    def lacking(self, members: Membership) -> PlanError | None:
        """What is missing to hold the model, if that is certain: everyone who belongs to the cluster is here."""
        return self.shortage if self.plan is None and self.settled and self._gathered(members) else None

    @property
    def settled(self) -> bool:
        """Whether the members of now have been planned for."""
        return self._planned is not None and self._planned == self._seen

    def why_out(self, node: str) -> str:
        """Why a node is left out of plans; empty where it is not."""
        if refusal := self._offers.refused.get(node):
            return refusal
        reasons = [self.trouble.reason(host) for host in self._barred if _split(host)[0] == node]
        return f"it failed to run its layers: {reasons[-1]}" if reasons else ""

    def decide(self, members: Membership, now_s: float, *, idle: bool) -> list[Order]:
        """What to order now; ``idle`` says that no answer is under way."""
        if self._began_s is None:
            self._began_s = self._changed_s = now_s
        self._expire(members, now_s)
        hosts = self._offers.hosts(members.present)
        self._barred = barred = tuple(host.id for host in hosts if self.trouble.bars(host.id, now_s))
        self._notice((*hosts, *barred, *self._offers.unfit), now_s)
        planned = {host for host, _ in self.plan.stages} if self.plan else set()
        broken = not planned <= {host.id for host in hosts}
        urgent = broken or not planned.isdisjoint(barred)
        if broken or (self._planned != self._seen and (urgent or self._settled(members, now_s, idle=idle))):
            self._planned, self._restless_s = self._seen, None
            if self._replan(hosts, barred, broken=broken):
                return self._orders(members, now_s)
        return self._reminders(members, now_s)

    def believes(self, members: Membership, node: str, report: Loading | Loaded | NotLoaded) -> bool:
        """Whether a report can be true: its plan and slot are what this node was told, and it was not done before."""
        host = _host(node, report.slot)
        load, member = self._loads.get(host), members.get(node)
        if report.plan_version != self.number or load is None or member is None:
            return False
        loaded = member.slot(report.slot)
        serves = loaded is not None and loaded.plan_version == report.plan_version
        return load.under_way or (serves and not isinstance(report, Loading))

    def progress(self, node: str, report: Loading, now_s: float) -> None:
        """A load is under way: no need to order it again."""
        load = self._loads[_host(node, report.slot)]
        load.ordered_s = now_s
        if (report.activity, report.done_bytes) != load.at:
            load.at, load.moved_s = (report.activity, report.done_bytes), now_s

    def loaded(self, node: str, slot: int, now_s: float) -> None:
        """A slot has loaded what it was told to."""
        host = _host(node, slot)
        self._loads[host].under_way = False
        self.trouble.works(host, now_s)

    def failed(self, node: str, slot: int, reason: str, now_s: float, *, grave: bool = False) -> None:
        """A slot could not load, or lost its stage: it is tried again, later each time."""
        host = _host(node, slot)
        load = self._loads[host]
        load.under_way = False
        load.ordered_s = self.trouble.failed(host, reason, now_s, grave=grave) - AGAIN_S

    def answered(self) -> None:
        """An answer was finished: every stage of the plan has done its work, whatever was wrong with it before."""
        for host, _ in self.plan.stages if self.plan else ():
            self.trouble.clear(host)

    def stages(self, members: Membership) -> list[tuple[Member, int, LayerRange, Loaded | None]]:
        """Member, slot, range and what is loaded of each stage of the plan, in order."""
        found = []
        for host, layers in self.plan.stages if self.plan else ():
            node, slot = _split(host)
            member = members.get(node)
            if member is not None:
                loaded = member.slot(slot)
                found.append((member, slot, layers, loaded if loaded and loaded.plan_version == self.number else None))
        return found

    def complete(self, members: Membership) -> bool:
        """Whether every stage of the plan is loaded on a member that is well."""
        stages = self.stages(members)
        return bool(stages) and all(
            loaded is not None and member.phase in (MemberPhase.JOINED, MemberPhase.READY)
            for member, _, _, loaded in stages
        )

    def _gathered(self, members: Membership) -> bool:
        return self.known <= {member.node for member in members.present}

    def _notice(self, seen: tuple[object, ...], now_s: float) -> None:
        if seen != self._seen:
            self._seen, self._changed_s = seen, now_s
            self._restless_s = now_s if self._restless_s is None else self._restless_s
        if seen == self._planned:
            self._restless_s = None

    def _settled(self, members: Membership, now_s: float, *, idle: bool) -> bool:
        restless_s = now_s - (self._changed_s if self._restless_s is None else self._restless_s)
        quiet = now_s - self._changed_s >= QUIET_S or restless_s >= RESTLESS_S
        if self.plan is None:
            return quiet and (self._gathered(members) or now_s - (self._began_s or now_s) >= GATHER_S)
        return quiet and (idle or restless_s >= PATIENCE_S)

    def _replan(self, hosts: Sequence[StageHost], barred: Sequence[str], *, broken: bool) -> bool:
        """Whether another plan is in force now."""
        self.shortage, self.left_out = None, ""
        self._offers.take_back()
        well = [host for host in hosts if host.id not in barred]
        try:
            plan = self._place(well)
        except PlanError as error:
            plan, self.shortage = None, error
        if plan is None and len(well) < len(hosts):  # rather one that has failed than none
            out = [host for host in hosts if host.id in barred]
            self.left_out = ", ".join(f"{host} cannot run its layers: {self.trouble.reason(host.id)}" for host in out)
            try:
                plan = self._place(hosts)
            except PlanError as error:
                self.shortage, self.left_out = error, ""
        if plan is None and self.plan is not None and not broken:
            return False
        changed = plan != self.plan
        self.plan = plan
        self.count += changed
        return changed

    def _place(self, hosts: Sequence[StageHost]) -> Plan:
        """A plan with as many of the pinned nodes as there can be."""
        try:
            return self._place_all(hosts)
        except PlanError as error:
            possible = self._offers.possible(hosts, error)
            if possible is None:
                raise
            return self._place_all(possible)

    def _place_all(self, hosts: Sequence[StageHost]) -> Plan:
        if self.plan is None:
            return place(self.want, hosts, self.links, self.coordinator)
        return replace(self.want, hosts, self.links, self.coordinator, self.plan)

    def _orders(self, members: Membership, now_s: float) -> list[Order]:
        self._loads.clear()
        wanted = {host for host, _ in self.plan.stages} if self.plan else set()
        idle: list[Order] = [
            (member.node, Unload(self.number, slot))
            for member in members.present
            for slot in range(member.facts.stage_slots)
            if _host(member.node, slot) not in wanted
        ]
        return idle + [self._order(host, layers, now_s) for host, layers in (self.plan.stages if self.plan else ())]

    def _order(self, host: str, layers: LayerRange, now_s: float) -> Order:
        load = self._loads.setdefault(host, _Load(now_s, now_s))
        if not load.under_way:
            load.under_way, load.moved_s, load.at = True, now_s, ("", -1)
        load.ordered_s = now_s
        node, slot = _split(host)
        return node, Load(self.number, slot, self.model, layers.start, layers.stop, self.exact, self.kv_bits)

    def _reminders(self, members: Membership, now_s: float) -> list[Order]:
        """Loads that may have got lost, or are to be tried again."""
        return [
            self._order(host, layers, now_s)
            for host, layers in self._missing(members)
            if host not in self._loads or now_s - self._loads[host].ordered_s >= AGAIN_S
        ]

    def _expire(self, members: Membership, now_s: float) -> None:
        """Let a load that does not come any further count as failed, so that nobody waits for it for ever."""
        for host, _ in self._missing(members):
            load = self._loads.get(host)
            if load is not None and load.under_way and now_s - load.moved_s >= STALLED_S:
                self.failed(*_split(host), f"its load came no further for {STALLED_S:.0f} s", now_s, grave=True)

    def _missing(self, members: Membership) -> list[tuple[str, LayerRange]]:
        """The plan's hosts that are not loaded and can be told to."""
        return [
            (_host(member.node, slot), layers)
            for member, slot, layers, loaded in self.stages(members)
            if loaded is None and member.phase not in (MemberPhase.SUSPECT, MemberPhase.GONE)
        ]

    def remind(self, node: str, *, restarted: bool) -> None:
        """A member enrolled again: what it was told before may be lost. A new process of it has not failed yet."""
        for host, load in self._loads.items():
            if _split(host)[0] == node and (restarted or load.under_way):
                load.ordered_s = -AGAIN_S
        if restarted:
            self.trouble.forget(node)


def _host(node: str, slot: int) -> str:
    return f"{node}/{slot}"


def _split(host: str) -> tuple[str, int]:
    node, _, slot = host.partition("/")
    return node, int(slot)
