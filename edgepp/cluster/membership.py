"""Who takes part in a cluster and how they are: one table of states. Pure: no socket, no clock of its own.

A node is known by the id that follows from its key. A process of it is known by its incarnation, so that a restart is
told from a second machine with a copied key: the second is refused while the first is heard from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from edgepp.wire.messages import Enrol, Heartbeat, Loaded

SUSPECT_S = 2.0
"""A member that is silent for so long is suspect: nothing new is given to it."""
GONE_S = 10.0
"""A member that is silent for so long is gone: its layers are needed elsewhere."""
CLOSED_S = 2.5
"""The same, for one that closed its connection: it was ended, and does not merely sleep."""


class MemberPhase(Enum):
    """How a member is."""

    JOINED = "joined"
    """It is there; what the plan wants of it is not loaded."""
    READY = "ready"
    """It has loaded what the plan wants of it."""
    SUSPECT = "suspect"
    """It has been silent for a while."""
    GONE = "gone"
    """It left, was revoked, or has been silent for too long."""


class MemberEvent(Enum):
    """What happens to a member."""

    ENROLLED = "enrolled"
    HEARD = "heard"
    LOADED = "loaded"
    ASSIGNED = "assigned"
    SILENT = "silent"
    LOST = "lost"
    LEFT = "left"


_TRANSITIONS: dict[tuple[MemberPhase, MemberEvent], MemberPhase] = {
    (MemberPhase.JOINED, MemberEvent.HEARD): MemberPhase.JOINED,
    (MemberPhase.JOINED, MemberEvent.ENROLLED): MemberPhase.JOINED,
    (MemberPhase.JOINED, MemberEvent.ASSIGNED): MemberPhase.JOINED,
    (MemberPhase.JOINED, MemberEvent.LOADED): MemberPhase.READY,
    (MemberPhase.JOINED, MemberEvent.SILENT): MemberPhase.SUSPECT,
    (MemberPhase.JOINED, MemberEvent.LEFT): MemberPhase.GONE,
    (MemberPhase.READY, MemberEvent.HEARD): MemberPhase.READY,
    (MemberPhase.READY, MemberEvent.ENROLLED): MemberPhase.JOINED,
    (MemberPhase.READY, MemberEvent.ASSIGNED): MemberPhase.JOINED,
    (MemberPhase.READY, MemberEvent.LOADED): MemberPhase.READY,
    (MemberPhase.READY, MemberEvent.SILENT): MemberPhase.SUSPECT,
    (MemberPhase.READY, MemberEvent.LEFT): MemberPhase.GONE,
    (MemberPhase.SUSPECT, MemberEvent.HEARD): MemberPhase.JOINED,
    (MemberPhase.SUSPECT, MemberEvent.ENROLLED): MemberPhase.JOINED,
    (MemberPhase.SUSPECT, MemberEvent.ASSIGNED): MemberPhase.SUSPECT,
    (MemberPhase.SUSPECT, MemberEvent.LOADED): MemberPhase.READY,
    (MemberPhase.SUSPECT, MemberEvent.SILENT): MemberPhase.SUSPECT,
    (MemberPhase.SUSPECT, MemberEvent.LOST): MemberPhase.GONE,
    (MemberPhase.SUSPECT, MemberEvent.LEFT): MemberPhase.GONE,
    (MemberPhase.GONE, MemberEvent.ENROLLED): MemberPhase.JOINED,
}
"""What is not here leaves a member as it is: a late word from one that is gone."""


@dataclass(frozen=True)
class Member:
    """One node as the coordinator knows it."""

    node: str
    key: str
    facts: Enrol
    route: bytes
    """Where its messages come from now; another after it reconnects."""
    host: str
    """The IP address that its messages come from."""
    heard_s: float
    phase: MemberPhase = MemberPhase.JOINED
    memory_free: int = 0
    rtt_us: int = 0
    closed: bool = False
    """Whether its connection was closed from its side since it was last heard."""
    clock_off_us: int = 0
    """How far its wall clock is ahead of the coordinator's."""
    went: str = ""
    """Why it is gone: it "left", or what else became of it."""
    loaded: tuple[tuple[int, Loaded], ...] = ()
    """The newest ``Loaded`` of each slot."""

    def slot(self, slot: int) -> Loaded | None:
        """What it serves in ``slot``."""
        return dict(self.loaded).get(slot)


class Membership:
    """The members of one cluster; ``version`` grows whenever anything that others should know has changed."""

    def __init__(self) -> None:
        self.version = 0
        self._members: dict[str, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def get(self, node: str) -> Member | None:
        """The member called ``node``."""
        return self._members.get(node)

    @property
    def present(self) -> tuple[Member, ...]:
        """Every member that is not gone, by id."""
        return tuple(m for _, m in sorted(self._members.items()) if m.phase is not MemberPhase.GONE)

    def enrol(self, node: str, key: str, facts: Enrol, route: bytes, host: str, now_s: float) -> str:
        """Take a node in, or take its news; why not, or an empty text.

        A second process with the same id is refused as long as the first one is heard from.
        """
        old = self._members.get(node)
        if (
            old is not None
            and old.phase in (MemberPhase.JOINED, MemberPhase.READY)
            and old.facts.incarnation != facts.incarnation
        ):
            return (
                f"a node with this id ({node}) is a member already: {old.facts.name} at {old.host}."
                " Was its configuration copied?"
            )
        if old is None or old.facts.incarnation != facts.incarnation:
            member = Member(node, key, facts, route, host, now_s)
        else:
            member = replace(old, facts=facts, route=route, host=host, heard_s=now_s, closed=False, went="")
        if old is None or member != replace(old, heard_s=now_s, closed=False):
            self.version += 1
        self._members[node] = member
        if old is not None:
            self._move(node, MemberEvent.ENROLLED)
        return ""

    def heard(self, node: str, beat: Heartbeat, clock_off_us: int, route: bytes, host: str, now_s: float) -> bool:
        """Note a sign of life; False asks the node to enrol again."""
        member = self._members.get(node)
        if member is None or member.phase is MemberPhase.GONE or member.facts.incarnation != beat.incarnation:
            return False
        if member.host != host or member.route != route:
            return False  # its addresses may be others now, and what was sent to its last connection is lost
        self._members[node] = replace(
            member,
            heard_s=now_s,
            closed=False,
            memory_free=beat.free_memory_bytes,
            rtt_us=beat.rtt_us,
            clock_off_us=clock_off_us,
        )
        self._move(node, MemberEvent.HEARD)
        return True

    def loaded(self, node: str, slot: int, loaded: Loaded | None) -> None:
        """Note what a slot serves, or that it serves nothing any more."""
        member = self._members[node]
        slots = {**dict(member.loaded), slot: loaded}
        kept = tuple((n, one) for n, one in sorted(slots.items()) if one is not None)
        self._members[node] = replace(member, loaded=kept)
        self.version += 1

    def assigned(self, node: str, *, complete: bool) -> None:
        """Note whether a member has loaded all that the plan wants of it."""
        self._move(node, MemberEvent.LOADED if complete else MemberEvent.ASSIGNED)

    def closed(self, node: str) -> None:
        """Note that a member's connection was closed from its side."""
        self._members[node] = replace(self._members[node], closed=True)

    def left(self, node: str, how: str = "left") -> None:
        """Note that a member went, or was sent away."""
        self._members[node] = replace(self._members[node], went=how)
        self._move(node, MemberEvent.LEFT)

    def tick(self, now_s: float) -> list[Member]:
        """Let silence count; the members whose phase changed by it."""
        changed = []
        for node, member in list(self._members.items()):
            silent_s = now_s - member.heard_s
            if silent_s > SUSPECT_S and self._move(node, MemberEvent.SILENT):
                changed.append(self._members[node])
            if silent_s > (CLOSED_S if member.closed else GONE_S) and self._move(node, MemberEvent.LOST):
                how = "closed its connection" if member.closed else f"has been silent for {silent_s:.0f} s"
                self._members[node] = replace(self._members[node], went=how)
                changed.append(self._members[node])
        return changed

    def forgive(self, gap_s: float) -> None:
        """Do not count the time in which the coordinator itself did not run as the members' silence."""
        for node, member in self._members.items():
            self._members[node] = replace(member, heard_s=member.heard_s + gap_s)

    def _move(self, node: str, event: MemberEvent) -> bool:
        member = self._members[node]
        phase = _TRANSITIONS.get((member.phase, event), member.phase)
        if phase is member.phase:
            return False
        self._members[node] = replace(member, phase=phase, loaded=() if phase is MemberPhase.GONE else member.loaded)
        self.version += 1
        return True
