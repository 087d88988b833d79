"""Which plan is in force, and what has to be loaded for it. Pure: members in, orders out.

A plan is made anew when members come, go or change, once things have been quiet for a moment; it is put into force when
it must be (a stage's node is gone) or when it is clearly better (``placement.replace``) and nobody is being answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.cluster.membership import Member, Membership, Phase
from edgepp.cluster.placement import place, replace
from edgepp.cluster.shortage import check_pins
from edgepp.cluster.sizes import Host, LinkSpeed, Plan, Want
from edgepp.errors import PlanError
from edgepp.layers import LayerRange
from edgepp.wire.messages import Load, Loaded, NotLoaded, Unload

QUIET_S = 1.0
"""How long members must not have changed before a plan is made."""
GATHER_S = 4.0
"""How long, after its start, the coordinator waits for the members that it knows."""
PATIENCE_S = 30.0
"""How long a better plan waits for answers to end."""
AGAIN_S = 5.0
"""A load of which nothing is heard for so long is ordered again."""
TRIES = 3
"""Failures after which a slot is left out of plans for ``PENALTY_S``."""
PENALTY_S = 120.0

Order = tuple[str, Load | Unload]
"""What to send, and to which node."""


@dataclass
class _Trouble:
    failures: int
    until_s: float
    reason: str


@dataclass
class Director:
    """Keeps a plan in force over changing members."""

    want: Want
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
    """Nodes that were members before, for which a start waits a moment."""
    plan: Plan | None = None
    reason: str = "no node has joined yet"
    """Why there is no plan."""
    links: dict[tuple[str, str], LinkSpeed] = field(default_factory=dict)
    """As measured so far, by node ids."""
    _began_s: float | None = None
    _seen: tuple[object, ...] = ()
    _planned: tuple[object, ...] | None = None
    _changed_s: float = 0.0
    _ordered_s: dict[str, float] = field(default_factory=dict)
    _trouble: dict[str, _Trouble] = field(default_factory=dict)
    _unfit: dict[str, str] = field(default_factory=dict)
    """Why a node's pinned range cannot be, by node id: it is left out, and the others go on."""

    @property
    def number(self) -> int:
        """The newest plan's number on the wire."""
        return self.base + self.count

    @property
    def settled(self) -> bool:
        """Whether the members of now have been planned for."""
        return self._planned is not None and self._planned == self._seen

    def trouble(self, node: str) -> str:
        """Why a node is left out of plans; empty where it is not."""
        if node in self._unfit:
            return self._unfit[node]
        left_out = [one for host, one in self._trouble.items() if _split(host)[0] == node and one.failures >= TRIES]
        return f"it failed to run its layers: {left_out[-1].reason}" if left_out else ""

    def decide(self, members: Membership, now_s: float, *, idle: bool) -> list[Order]:
        """What to order now; ``idle`` says that no answer is under way."""
        if self._began_s is None:
            self._began_s = self._changed_s = now_s
        hosts = self._hosts(members.present, now_s)
        seen = (*hosts, *self._unfit.items())
        if seen != self._seen:
            self._seen, self._changed_s = seen, now_s
        broken = self.plan is not None and not {host for host, _ in self.plan.stages} <= {host.id for host in hosts}
        if (broken or self._planned != self._seen) and self._settled(members, now_s, idle=idle, broken=broken):
            self._planned = self._seen
            if self._replan(hosts, broken=broken):
                return self._orders(members, now_s)
        return self._reminders(members, now_s)

    def progress(self, node: str, slot: int, now_s: float) -> None:
        """A load is under way: no need to order it again."""
        self._ordered_s[_host(node, slot)] = now_s

    def failed(self, node: str, failure: NotLoaded, now_s: float) -> None:
        """A slot could not load, or lost its stage: try again after a second, and after three times elsewhere."""
        host = _host(node, failure.slot)
        trouble = self._trouble.setdefault(host, _Trouble(0, 0.0, ""))
        trouble.failures += 1
        trouble.reason = failure.reason
        trouble.until_s = now_s + PENALTY_S
        self._ordered_s[host] = now_s - AGAIN_S + 1.0

    def stages(self, members: Membership) -> list[tuple[Member, int, LayerRange, Loaded | None]]:
        """Member, slot, range and what is loaded of each stage of the plan, in order."""
        found = []
        for host, layers in self.plan.stages if self.plan else ():
            node, slot = _split(host)
            member = members.get(node)
            if member is not None:
                loaded = member.slot(slot)
                found.append((member, slot, layers, loaded if loaded and loaded.plan == self.number else None))
        return found

    def complete(self, members: Membership) -> bool:
        """Whether every stage of the plan is loaded on a member that is well."""
        stages = self.stages(members)
        return bool(stages) and all(
            loaded is not None and member.phase in (Phase.JOINED, Phase.READY) for member, _, _, loaded in stages
        )

    def _settled(self, members: Membership, now_s: float, *, idle: bool, broken: bool) -> bool:
        quiet_s = now_s - self._changed_s
        if broken:
            return True
        if self.plan is None:
            gathered = self.known <= {member.node for member in members.present}
            return quiet_s >= QUIET_S and (gathered or now_s - (self._began_s or now_s) >= GATHER_S)
        return quiet_s >= QUIET_S and (idle or quiet_s >= PATIENCE_S)

    def _replan(self, hosts: Sequence[Host], *, broken: bool) -> bool:
        """Whether another plan is in force now."""
        try:
            if self.plan is None:
                plan = place(self.want, hosts, self.links, self.coordinator)
            else:
                plan = replace(self.want, hosts, self.links, self.coordinator, self.plan)
        except PlanError as error:
            left_out = [trouble for trouble in self._trouble.values() if trouble.failures >= TRIES]
            self.reason = f"{error}; {error.hint}" if error.hint else str(error)
            if left_out:
                self.reason = f"a node cannot run its layers: {left_out[-1].reason}; without it, {self.reason}"
            for unfit in self._unfit.values():
                self.reason = f"{unfit}; without it, {self.reason}"
            if not broken and self.plan is not None:
                return False
            changed, self.plan = self.plan is not None, None
            self.count += changed
            return changed
        self.reason = "; ".join(self._unfit.values())
        if plan == self.plan:
            return False
        self.plan = plan
        self.count += 1
        return True

    def _orders(self, members: Membership, now_s: float) -> list[Order]:
        self._ordered_s.clear()
        wanted = {host for host, _ in self.plan.stages} if self.plan else set()
        idle: list[Order] = [
            (member.node, Unload(self.number, slot))
            for member in members.present
            for slot in range(member.facts.slots)
            if _host(member.node, slot) not in wanted
        ]
        return idle + [self._order(host, layers, now_s) for host, layers in (self.plan.stages if self.plan else ())]

    def _order(self, host: str, layers: LayerRange, now_s: float) -> Order:
        self._ordered_s[host] = now_s
        node, slot = _split(host)
        return node, Load(self.number, slot, self.model, layers.start, layers.stop, self.exact, self.kv_bits)

    def _reminders(self, members: Membership, now_s: float) -> list[Order]:
        """Loads that may have got lost, or are to be tried again."""
        return [
            self._order(_host(member.node, slot), layers, now_s)
            for member, slot, layers, loaded in self.stages(members)
            if loaded is None
            and member.phase is not Phase.SUSPECT
            and now_s - self._ordered_s.get(_host(member.node, slot), 0.0) >= AGAIN_S
        ]

    def remind(self, node: str) -> None:
        """A member enrolled again: what it was told before may be lost."""
        for host in [host for host in self._ordered_s if _split(host)[0] == node]:
            del self._ordered_s[host]

    def _hosts(self, present: Sequence[Member], now_s: float) -> list[Host]:
        hosts = []
        self._unfit.clear()
        for member in present:
            facts = member.facts
            whole = Host(
                id=member.node,
                node=member.node,
                memory=facts.memory,
                stream_bps=max(1.0, facts.stream_bps),
                flops=max(1.0, facts.flops),
                pinned=LayerRange(facts.start, facts.stop) if facts.stop > facts.start else None,
                coordinator=member.node == self.coordinator,
                name=facts.name,
            )
            divided = whole.divided(facts.slots)
            try:
                check_pins(self.want, divided[:1] or [whole])
            except PlanError as error:
                self._unfit[member.node] = f"{error}; {error.hint}"
                continue
            for host in divided:
                trouble = self._trouble.get(host.id)
                if trouble is not None and trouble.failures >= TRIES:
                    if now_s < trouble.until_s:
                        continue
                    del self._trouble[host.id]
                hosts.append(host)
        return hosts


def _host(node: str, slot: int) -> str:
    return f"{node}/{slot}"


def _split(host: str) -> tuple[str, int]:
    node, _, slot = host.partition("/")
    return node, int(slot)
