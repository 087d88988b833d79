"""The coordinator's side of membership: enrolment, heartbeats, silence, leaving, and the view that members receive.

``node/agent`` is the other side, and ``cluster/membership`` the table of member states. Belongs to the coordinator's
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgepp import __version__
from edgepp.cluster.identity import Identity, clean_name
from edgepp.cluster.membership import Member, MemberPhase, Membership
from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.trust_store import TrustStore
from edgepp.errors import UsageError
from edgepp.events import NodeChanged, NodeJoined, NodeMoved, NodeRefused, OnEvent
from edgepp.printable import one_line
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.message_codec import encode, encode_payload
from edgepp.wire.messages.nodes import Enrol, Enrolled, Expelled, Heartbeat, HeartbeatAck, Leave, View
from edgepp.wire.transport import Sender

_PROBE_S = (0.8, 1.2)
"""The silence, from and to, after which a member's connection is probed."""


class MembershipService:
    """Keeps ``members`` up to date by messages and by silence, and publishes the view."""

    def __init__(
        self,
        members: Membership,
        identity: Identity,
        trust_store: TrustStore,
        planner: Planner,
        send: Callable[[bytes, Sequence[bytes]], bool],
        on_event: OnEvent,
        drafts: Callable[[str], str] = lambda _: "",
        working: Callable[[], bool] = lambda: False,
    ) -> None:
        """``send`` takes a route and frames, and is False for a lost route.

        ``drafts`` says what a node does for guesses; empty for nothing. ``working`` says whether answers are under
        way.
        """
        self._members = members
        self._identity = identity
        self._trust_store = trust_store
        self._planner = planner
        self._send = send
        self._on_event = on_event
        self._drafts = drafts
        self._working = working
        self._log_sampler = LogSampler()
        self._published: tuple[object, ...] | None = None
        self._ticked_s = 0.0

    def enrol(self, node: str, sender: Sender, facts: Enrol) -> None:
        """Make a node a member, or update what is known of a member.

        Raises:
            UsageError: the node runs another version, or another process with the same id is a member.
        """
        now_s = time.monotonic()
        facts = _printable(facts)
        if facts.version.split(".")[:2] != __version__.split(".")[:2]:
            raise UsageError(
                f"this machine runs edgepp {facts.version}, and the cluster {__version__}", "install the same version"
            )
        new = (old := self._members.get(node)) is None or old.phase is MemberPhase.GONE
        if reason := self._members.enrol(node, sender.key, facts, sender.route, sender.host, now_s):
            if self._log_sampler.should_log(sender.host, "double"):
                self._on_event(NodeRefused(facts.name, sender.host, reason))
            raise UsageError(reason)
        restarted = old is not None and old.facts.incarnation != facts.incarnation
        self._planner.loads.remind(node, restarted=restarted)
        if restarted:
            self._planner.link_bans.forget(node)
        self._send(sender.route, [encode(Enrolled(self._trust_store.cluster.id, self._identity.name))])
        self._published = None
        if new:
            self._on_event(NodeJoined(facts.name, sender.host, facts.memory_bytes, facts.backend))
        elif old is not None and old.host != sender.host:
            self._on_event(NodeMoved(facts.name, old.host, sender.host))

    def heartbeat(self, node: str, sender: Sender, beat: Heartbeat) -> None:
        """Note a heartbeat, and acknowledge it."""
        now_us = time.time_ns() // 1000
        clock_offset_us = beat.clock_us + beat.rtt_us // 2 - now_us
        known = self._members.heard(node, beat, clock_offset_us, sender.route, sender.host, time.monotonic())
        self._send(sender.route, [encode(HeartbeatAck(known, now_us, self._working()))])

    def leave(self, node: str, message: Leave) -> None:
        """Note that a member leaves, unless a newer process of its node is the member already."""
        member = self._members.get(node)
        if member is not None and member.facts.incarnation == message.incarnation:
            self._members.left(node)
            self._on_event(NodeChanged(member.facts.name, "stopped"))

    def expel_all(self, reason: str) -> bool:
        """Send ``Expelled`` to every member but this machine's own node; True where none of them is left.

        Call this again until then: a member that reconnects just now misses what was sent to its old connection.
        """
        others = [member for member in self._members.present if member.node != self._identity.node]
        for member in others:
            self._send(member.route, [encode(Expelled(reason))])
        return not others

    def tick(self, now_s: float) -> None:
        """Update the phases of silent members; time in which this machine itself slept is no silence."""
        if self._ticked_s and now_s - self._ticked_s > 1.0:
            self._members.forgive(now_s - self._ticked_s)
        self._ticked_s = now_s
        self._probe(now_s)
        for member in self._members.tick(now_s):
            self._on_event(NodeChanged(member.facts.name, f"is {member.phase.value}"))

    def publish(self) -> None:
        """Send the view to all members when it has changed."""
        members, planner = self._members, self._planner
        tasks = tuple(self._drafts(member.node) for member in members)
        newest = (members.version, planner.plan_id, planner.reason, planner.settled, tasks)
        if newest == self._published:
            return
        self._published = newest
        assignments = node_assignments(planner, members, self._drafts)
        view = {
            "version": members.version,
            "plan_version": planner.plan_version,
            "cluster": self._trust_store.cluster.id,
            "model": planner.model,
            "keys": sorted(self._trust_store.keys),
            "members": [
                {"node": m.node, "name": m.facts.name, "state": m.phase.value, "address": m.host, **assignments[m.node]}
                for m in members
            ],
        }
        frames = [encode(View(members.version)), encode_payload(view)]
        for member in members.present:
            self._send(member.route, frames)

    def _probe(self, now_s: float) -> None:
        """Find out whether a member that has just fallen silent has closed its connection, by sending to it.

        The connection of a machine that sleeps is closed by ZeroMQ, but only after 1.5 s without ZeroMQ's heartbeats.
        """
        for member in self._members.present:
            just_silent = _PROBE_S[0] < now_s - member.heard_s < _PROBE_S[1]
            if just_silent and not member.closed and not self._is_connected(member):
                self._members.closed(member.node)

    def stage_ended(self, node: str) -> None:
        """Find out whether a member has ended altogether, since its stage process has."""
        member = self._members.get(node)
        if member is not None and member.phase is not MemberPhase.GONE and not self._is_connected(member):
            self._members.closed(node, ended=True)

    def _is_connected(self, member: Member) -> bool:
        return self._send(member.route, [encode(HeartbeatAck(True, time.time_ns() // 1000, self._working()))])


def _printable(facts: Enrol) -> Enrol:
    """``facts`` with texts that are safe to print."""
    return facts._replace(
        name=clean_name(facts.name),
        version=one_line(facts.version, 40),
        backend=one_line(facts.backend, 40),
        device=one_line(facts.device, 100),
        draft=one_line(facts.draft, 200),
    )
