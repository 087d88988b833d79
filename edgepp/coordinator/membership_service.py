"""The coordinator's side of membership: members enrol, beat, fall silent and leave, and are told of each other.

``node/member`` is the other side, ``cluster/membership`` the table of states. Belongs to the coordinator's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgepp import __version__
from edgepp.cluster.identity import Identity, clean_name
from edgepp.cluster.membership import MemberPhase, Membership
from edgepp.coordinator.assignments import node_assignments
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.trust_store import TrustStore
from edgepp.errors import UsageError
from edgepp.events import NodeChanged, NodeJoined, NodeMoved, NodeRefused, OnEvent
from edgepp.printable import one_line
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.message_codec import encode, encode_payload
from edgepp.wire.messages import Enrol, Enrolled, Expelled, Heartbeat, HeartbeatAck, Leave, View
from edgepp.wire.transport import Sender

_PROBE_S = (0.8, 1.2)


class MembershipService:
    """Keeps ``members`` by what they say, and by what they do not say."""

    def __init__(
        self,
        members: Membership,
        identity: Identity,
        registry: TrustStore,
        director: Planner,
        send: Callable[[bytes, Sequence[bytes]], bool],
        on_event: OnEvent,
    ) -> None:
        """``send`` takes a route and frames; False where that peer is gone."""
        self._members = members
        self._identity = identity
        self._registry = registry
        self._director = director
        self._send = send
        self._on_event = on_event
        self._rarely = LogSampler()
        self._viewed: tuple[object, ...] | None = None
        self._ticked_s = 0.0

    def enrol(self, node: str, sender: Sender, facts: Enrol) -> None:
        """Take a node in.

        Raises:
            UsageError: it runs another version, or its id is taken by a member that is well.
        """
        now_s = time.monotonic()
        facts = _printable(facts)
        if facts.version.split(".")[:2] != __version__.split(".")[:2]:
            raise UsageError(f"it runs edgepp {facts.version}, and this cluster {__version__}", "install the same one")
        new = (old := self._members.get(node)) is None or old.phase is MemberPhase.GONE
        if reason := self._members.enrol(node, sender.key, facts, sender.route, sender.host, now_s):
            if self._rarely.should_log(sender.host, "double"):
                self._on_event(NodeRefused(facts.name, sender.host, reason))
            raise UsageError(reason)
        self._director.remind(node, restarted=old is not None and old.facts.incarnation != facts.incarnation)
        self._send(sender.route, [encode(Enrolled(self._registry.cluster.id, self._identity.name))])
        self._viewed = None
        if new:
            self._on_event(NodeJoined(facts.name, sender.host, facts.memory_bytes, facts.backend))
        elif old is not None and old.host != sender.host:
            self._on_event(NodeMoved(facts.name, old.host, sender.host))

    def beat(self, node: str, sender: Sender, beat: Heartbeat) -> None:
        """Note a sign of life, and answer it."""
        now_us = time.time_ns() // 1000
        off_us = beat.clock_us + beat.rtt_us // 2 - now_us
        known = self._members.heard(node, beat, off_us, sender.route, sender.host, time.monotonic())
        self._send(sender.route, [encode(HeartbeatAck(known, now_us))])

    def leave(self, node: str, message: Leave) -> None:
        """Let a member go, unless a newer process of its node is the member by now."""
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
        """Let silence count, but not that of the time in which this machine itself slept."""
        if self._ticked_s and now_s - self._ticked_s > 1.0:
            self._members.forgive(now_s - self._ticked_s)
        self._ticked_s = now_s
        self._probe(now_s)
        for member in self._members.tick(now_s):
            self._on_event(NodeChanged(member.facts.name, f"is {member.phase.value}"))

    def publish(self) -> None:
        """Send the members a new view whenever there is one."""
        members, director = self._members, self._director
        newest = (members.version, director.number, director.reason, director.settled)
        if newest == self._viewed:
            return
        self._viewed = newest
        parts = node_assignments(director, members)
        view = {
            "version": members.version,
            "plan_version": director.count,
            "cluster": self._registry.cluster.id,
            "model": director.model,
            "keys": sorted(self._registry.keys),
            "members": [
                {"node": m.node, "name": m.facts.name, "state": m.phase.value, "address": m.host, **parts[m.node]}
                for m in members
            ],
        }
        frames = [encode(View(members.version)), encode_payload(view)]
        for member in members.present:
            self._send(member.route, frames)

    def _probe(self, now_s: float) -> None:
        """See whether a member that has just fallen silent closed its connection.

        One that sleeps does not: ZeroMQ itself closes that, but only after its heartbeats' 1.5 s.
        """
        for member in self._members.present:
            if _PROBE_S[0] < now_s - member.heard_s < _PROBE_S[1] and not member.closed:
                alive = self._send(member.route, [encode(HeartbeatAck(True, time.time_ns() // 1000))])
                if not alive:
                    self._members.closed(member.node)


def _printable(facts: Enrol) -> Enrol:
    """What a node says of itself, safe to show to people."""
    return facts._replace(
        name=clean_name(facts.name),
        version=one_line(facts.version, 40),
        backend=one_line(facts.backend, 40),
        device=one_line(facts.device, 100),
    )
