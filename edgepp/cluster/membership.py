"""The members of a cluster and their phases: one table of transitions. Pure: no socket, no clock.

A node is identified by the id that follows from its key, and a process of the node by its incarnation. So a restart
differs from a second machine with a copied key: the second process is refused while the first one sends heartbeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from edgepp.host_system.sleep_inhibitor import SleepLock
from edgepp.wire.messages.nodes import Enrol, Heartbeat, Loaded

SUSPECT_S = 2.0
"""A member that is silent for this time is suspect: it gets no new work."""
GONE_S = 10.0
"""A member that is silent for this time is gone: its layers move to other members."""
CLOSED_S = 2.5
"""The time after which a silent member is gone that closed its connection, and so does not merely sleep.

A node connects from a new address sooner than that. A member whose stage process has ended too is gone at once.
"""


class MemberPhase(Enum):
    """The state of a member."""

    JOINED = "joined"
    """The member is present and has not loaded all of its layers."""
    READY = "ready"
    """The member has loaded all of its layers."""
    SUSPECT = "suspect"
    """The member has been silent for ``SUSPECT_S`` seconds."""
    GONE = "gone"
    """The member left, was revoked, or has been silent for ``GONE_S`` seconds."""


class MemberEvent(Enum):
    """An event that can change a member's phase."""

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
"""A pair that is not in the table leaves the phase unchanged, such as a late heartbeat of a member that is gone."""


@dataclass(frozen=True)
class Member:
    """One node as the coordinator knows it."""

    node: str
    key: str
    facts: Enrol
    route: bytes
    """The route of its connection; another one after it reconnects."""
    host: str
    """The IP address that its messages come from."""
    heard_s: float
    """When the last message arrived."""
    phase: MemberPhase = MemberPhase.JOINED
    memory_free_bytes: int = 0
    rtt_us: int = 0
    closed: bool = False
    """Whether the member has closed its connection since its last message."""
    ended: bool = False
    """Whether in addition its stage process has ended: both do when the node ends, and neither when it sleeps."""
    clock_offset_us: int = 0
    """How far its wall clock is ahead of the coordinator's."""
    sleep_lock: SleepLock = "released"
    """Whether the machine is kept from sleeping."""
    draining: bool = False
    """Whether the member gets no layers: it is leaving, or was drained; until it is started again."""
    gone_reason: str = ""
    """Why the member is gone, such as ``left``."""
    lost: bool = False
    """Whether the member is gone without having said so, as a machine whose power failed."""
    loaded: tuple[tuple[int, Loaded], ...] = ()
    """Slot and newest ``Loaded`` of each slot that holds layers."""

    def slot(self, slot: int) -> Loaded | None:
        """The newest ``Loaded`` of ``slot``; None where the slot holds no layers."""
        return dict(self.loaded).get(slot)

    @property
    def holds_layers(self) -> bool:
        """Whether the member's memory holds stages, by its last heartbeat."""
        return 0 < self.memory_free_bytes < self.facts.memory_bytes


class Membership:
    """The members of one cluster. ``version`` grows with every change that other members should know."""

    def __init__(self) -> None:
        self.version = 0
        self._members: dict[str, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def get(self, node: str) -> Member | None:
        """The member with the node id ``node``; None where there is none."""
        return self._members.get(node)

    @property
    def present(self) -> tuple[Member, ...]:
        """The members that are not gone, by id."""
        return tuple(m for _, m in sorted(self._members.items()) if m.phase is not MemberPhase.GONE)

    def enrol(self, node: str, key: str, facts: Enrol, route: bytes, host: str, now_s: float) -> str:
        """Add or update a member; returns why it is refused, or an empty text.

        A second process with the same id is refused as long as the first one sends heartbeats.
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
            member = replace(
                old,
                facts=facts,
                route=route,
                host=host,
                heard_s=now_s,
                closed=False,
                ended=False,
                gone_reason="",
                lost=False,
            )
        if old is None or member != replace(old, heard_s=now_s, closed=False, ended=False):
            self.version += 1
        self._members[node] = member
        if old is not None:
            self._move(node, MemberEvent.ENROLLED)
        return ""

    def heard(self, node: str, beat: Heartbeat, clock_offset_us: int, route: bytes, host: str, now_s: float) -> bool:
        """Note a heartbeat; False when the node has to enrol again."""
        member = self._members.get(node)
        if member is None or member.phase is MemberPhase.GONE or member.facts.incarnation != beat.incarnation:
            return False
        if member.host != host or member.route != route:
            return False  # its addresses may have changed, and messages sent to its last connection are lost
        self._members[node] = replace(
            member,
            heard_s=now_s,
            closed=False,
            ended=False,
            memory_free_bytes=beat.free_memory_bytes,
            rtt_us=beat.rtt_us,
            clock_offset_us=clock_offset_us,
            sleep_lock=beat.sleep_lock,
        )
        self._move(node, MemberEvent.HEARD)
        return True

    def loaded(self, node: str, slot: int, loaded: Loaded | None) -> None:
        """Note which layers a slot holds now; None for none."""
        member = self._members[node]
        slots = {**dict(member.loaded), slot: loaded}
        kept = tuple((n, one) for n, one in sorted(slots.items()) if one is not None)
        self._members[node] = replace(member, loaded=kept)
        self.version += 1

    def drain(self, node: str, *, draining: bool) -> None:
        """Note that a member gets no layers from now on, or gets some again."""
        self._members[node] = replace(self._members[node], draining=draining)
        self.version += 1

    def assigned(self, node: str, *, complete: bool) -> None:
        """Note whether a member has loaded all of its layers."""
        self._move(node, MemberEvent.LOADED if complete else MemberEvent.ASSIGNED)

    def closed(self, node: str, *, ended: bool = False) -> None:
        """Note that a member has closed its connection, and whether its stage process has ``ended`` too."""
        member = self._members[node]
        self._members[node] = replace(member, closed=True, ended=member.ended or ended)

    def left(self, node: str, reason: str = "left") -> None:
        """Note that a member left or was removed, for this ``reason``."""
        self._members[node] = replace(self._members[node], gone_reason=reason)
        self._move(node, MemberEvent.LEFT)

    def tick(self, now_s: float) -> list[Member]:
        """Update the phases of silent members; returns the members whose phase changed."""
        changed = []
        for node, member in list(self._members.items()):
            silent_s = now_s - member.heard_s
            if (silent_s > SUSPECT_S or member.ended) and self._move(node, MemberEvent.SILENT):
                changed.append(self._members[node])
            is_lost = silent_s > (CLOSED_S if member.closed else GONE_S) or member.ended
            if is_lost and self._move(node, MemberEvent.LOST):
                how = "closed its connection" if member.closed else f"has been silent for {silent_s:.0f} s"
                self._members[node] = replace(self._members[node], gone_reason=how, lost=True)
                changed.append(self._members[node])
        return changed

    def forgive(self, gap_s: float) -> None:
        """Do not count ``gap_s`` seconds, in which the coordinator itself did not run, as silence of the members."""
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
