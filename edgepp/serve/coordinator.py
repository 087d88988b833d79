"""The coordinator of a cluster: one thread that owns its socket, its members and the plan in force.

What takes time happens elsewhere: pipelines are opened by ``Serving``, answers given by ``Answers``; they hand what is
to be sent to this thread's mailbox. Who sent a message is known by the key that its connection proved.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from edgepp import __version__
from edgepp.cluster.desk import PairingDesk
from edgepp.cluster.discovery import Announcer
from edgepp.cluster.identity import Cluster, Identity
from edgepp.cluster.identity import Member as Paired
from edgepp.cluster.interfaces import Watch, usable_addresses
from edgepp.cluster.membership import Member, Membership, Phase
from edgepp.cluster.sizes import LinkSpeed
from edgepp.engine.peers import Endpoint
from edgepp.errors import EdgeppError, RemoteProtocolError, UsageError
from edgepp.serve.answers import Answers
from edgepp.serve.director import Director, Order
from edgepp.serve.registry import Registry
from edgepp.serve.report import report
from edgepp.serve.serving import Serving, Wanted
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.messages import (
    PAYLOAD_BYTES,
    Adopt,
    Ask,
    Beat,
    Beaten,
    Call,
    Cancel,
    Declined,
    Enrol,
    Enrolled,
    Expelled,
    Leave,
    Loaded,
    Loading,
    Message,
    NotLoaded,
    Refused,
    Reply,
    View,
    Waiting,
    decode,
    decode_payload,
    encode,
    encode_payload,
)
from edgepp.wire.security import Gate, Rarely, is_key
from edgepp.wire.transport import Address, Listener, Sender

log = logging.getLogger("edgepp.serve")

TICK_S = 0.1
_WAITING_S = 1.0
_PROBE_S = (0.8, 1.2)

Outgoing = tuple[bytes, list[bytes]] | None


@dataclass(frozen=True)
class Progress:
    """How far a slot's load is."""

    done: int
    total: int
    what: str


class Coordinator(threading.Thread):
    """Serves one cluster until it is closed."""

    def __init__(
        self,
        identity: Identity,
        cluster: Cluster,
        listen: Address,
        director: Director,
        serving: Serving,
        on_event: Callable[[str], None],
    ) -> None:
        """Bind ``listen``; members are let in when the thread is started.

        Raises:
            UsageError: the address is taken.
        """
        super().__init__(name="coordinator", daemon=True)
        self._identity = identity
        self.director = director
        self.serving = serving
        self._on_event = on_event
        self.members = Membership()
        self.answers = Answers(serving)
        self.progress: dict[tuple[str, int], Progress] = {}
        self.began_s = time.time()
        self._outbox: Mailbox[Outgoing] = Mailbox()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate(self._context, self._refused)
        self.registry = Registry(identity, cluster, self._gate)
        try:
            self._listener = Listener(self._context, listen, PAYLOAD_BYTES, identity.keys)
        except UsageError:
            self._gate.close()
            self._outbox.close()
            self._context.term()
            raise
        self.address = self._listener.address
        self.registry.reached_at(self.here)
        self._announcer = None  # nobody else could reach a loopback address
        if not self.address.is_loopback:
            self._announcer = Announcer(cluster.id, identity.node, identity.name, self.address.port)
        self._desk = PairingDesk(self.address, lambda: self.registry.cluster, self._paired, on_event)
        self._watch = Watch()
        self._viewed = -1
        self._waited_s = self._ticked_s = 0.0
        self._invitations: tuple[int, ...] = ()
        self._reason = ""
        self._rarely = Rarely()
        self._revoked: set[bytes] = set()
        """Routes of askers who were revoked in the middle of an answer."""

    @property
    def here(self) -> Address:
        """Where this machine's own processes reach it."""
        everywhere = self.address.host in ("*", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
        return Address("127.0.0.1", self.address.port) if everywhere else self.address

    def close(self) -> None:
        """End answers and the thread; members look for a new coordinator."""
        self._outbox.put(None)
        self.join()

    def run(self) -> None:
        """Serve until closed."""
        poller = Poller[Outgoing](self._listener, self._outbox)
        try:
            while self._turn(poller):
                continue
        finally:
            self.answers.cancel_all()
            self._desk.close()
            if self._announcer is not None:
                self._announcer.close()
            self._listener.close()
            self._gate.close()
            self._outbox.close()
            self._context.term()

    def _turn(self, poller: Poller[Outgoing]) -> bool:
        for reader in poller.wait(TICK_S):
            if reader is self._listener:
                self._receive()
            else:
                for outgoing in self._outbox.drain():
                    if outgoing is None:
                        return False
                    if outgoing[0] not in self._revoked:
                        self._send(*outgoing)
        now_s = time.monotonic()
        if now_s - self._ticked_s >= TICK_S:
            self._tick(now_s)
        return True

    def _tick(self, now_s: float) -> None:
        if self._ticked_s and now_s - self._ticked_s > 1.0:
            self.members.forgive(now_s - self._ticked_s)
        self._ticked_s = now_s
        if self._announcer is not None:
            self._announce(self._announcer)
        self._probe(now_s)
        for member in self.members.tick(now_s):
            self._on_event(f"{member.facts.name} is {member.phase.value}")
        number = self.director.number
        orders = self.director.decide(self.members, now_s, idle=not len(self.answers))
        if self.director.reason != self._reason:
            self._reason = self.director.reason
            if self._reason and self.director.plan is not None:
                self._on_event(f"plan {self.director.count} stays: {self._reason}")
        if self.director.number != number:
            self.progress.clear()
            self.answers.last = None
            self.serving.shut(self.director.reason or "the layers are being loaded")
            self._tell_plan()
        self._order(orders)
        self._assign()
        self._keep_serving()
        self._publish()
        if now_s - self._waited_s >= _WAITING_S:
            self._waited_s = now_s
            for route, request in self.answers.askers:
                self._send(route, [encode(Waiting(request, self._waiting()[:500]))])

    def _announce(self, announcer: Announcer) -> None:
        if self._watch.changed():
            announcer.refresh()
        if (numbers := self._desk.numbers()) != self._invitations:
            self._invitations = numbers
            announcer.update(numbers)

    def _probe(self, now_s: float) -> None:
        """See whether a member that has just fallen silent closed its connection.

        One that sleeps does not: ZeroMQ itself closes that, but only after its heartbeats' 1.5 s.
        """
        for member in self.members.present:
            if _PROBE_S[0] < now_s - member.heard_s < _PROBE_S[1] and not member.closed:
                alive = self._send(member.route, [encode(Beaten(True, time.time_ns() // 1000))])
                if not alive:
                    self.members.closed(member.node)

    def _waiting(self) -> str:
        if self.serving.pipeline is not None:
            return ""
        loading = [f"{p.what} {100 * p.done // max(1, p.total)} %" for p in self.progress.values() if p.done < p.total]
        return ", ".join([self.director.reason or self.serving.reason, *loading])

    def _tell_plan(self) -> None:
        stages = self.director.stages(self.members)
        if not stages:
            self._on_event(f"no plan: {self.director.reason}")
            return
        places = ", ".join(f"layers {layers} on {member.facts.name}" for member, _, layers, _ in stages)
        self._on_event(f"plan {self.director.count}: {places}")

    def _order(self, orders: Sequence[Order]) -> None:
        for node, message in orders:
            member = self.members.get(node)
            if member is not None:
                self._send(member.route, [encode(message)])

    def _assign(self) -> None:
        """Let members be ready once they have loaded all that the plan wants of them."""
        missing = {member.node for member, _, _, loaded in self.director.stages(self.members) if loaded is None}
        for member in self.members.present:
            if member.phase is not Phase.SUSPECT:
                self.members.assigned(member.node, complete=member.node not in missing)

    def _keep_serving(self) -> None:
        if self.director.complete(self.members):
            stages = self.director.stages(self.members)
            endpoints = tuple(_endpoint(member, loaded.port) for member, _, _, loaded in stages if loaded)
            self.serving.keep(Wanted(self.director.count, endpoints))
            self._learn_links([member for member, _, _, _ in stages])

    def _learn_links(self, stages: Sequence[Member]) -> None:
        """Keep what the open pipeline measured between its stages, for the next plan."""
        pipeline = self.serving.pipeline
        if pipeline is None or len(pipeline.stages) != len(stages):
            return
        nodes = [self._identity.node, *(member.node for member in stages)]
        for one, other, stage in zip(nodes, nodes[1:], pipeline.stages, strict=False):
            if one != other and stage.bytes_s:
                self.director.links[one, other] = LinkSpeed(stage.hop_s, stage.bytes_s)

    def _publish(self) -> None:
        """Send the members a new view whenever there is one."""
        if self.members.version == self._viewed:
            return
        self._viewed = self.members.version
        view = {
            "version": self.members.version,
            "epoch": self.director.count,
            "cluster": self.registry.cluster.id,
            "keys": sorted(self.registry.keys),
            "members": [
                {"node": m.node, "name": m.facts.name, "state": m.phase.value, "address": m.host} for m in self.members
            ],
        }
        frames = [encode(View(self.members.version)), encode_payload(view)]
        for member in self.members.present:
            self._send(member.route, frames)

    def _refused(self, host: str, why: str) -> None:
        reason = f"its key {why[:8]}… is not admitted" if is_key(why) else why
        self._on_event(f"refused a stranger at {host}: {reason}")

    def _paired(self, paired: Paired) -> None:
        """A node was invited. Called in the desk's thread."""
        self.registry.pair(paired)
        self.members.version += 1

    def _send(self, route: bytes, frames: Sequence[bytes]) -> bool:
        sent = self._listener.send(route, frames)
        if not sent:
            self.answers.cancel_all(route)
        return sent

    def _receive(self) -> None:
        while True:
            try:
                received = self._listener.receive_from()
                if received is None:
                    return
                sender, frames = received
                message = decode(frames[0])
            except RemoteProtocolError as error:
                log.warning("dropped a frame: %s", error)
                continue
            try:
                self._take(sender, message, frames)
            except EdgeppError as error:
                log.info("refused %s of %s: %s", type(message).__name__, sender.host, error)
                request = getattr(message, "request", None)
                refusal: Message = Refused(str(error)[:500])
                if request is not None:
                    refusal = Declined(request, str(error)[:500], error.hint[:500])
                self._send(sender.route, [encode(refusal)])

    def _take(self, sender: Sender, message: Message, frames: Sequence[memoryview]) -> None:
        if isinstance(message, Adopt):
            self._adopt(sender, message)
            return
        node = self.registry.node_of(sender.key)
        match message:
            case Enrol():
                self._enrol(node, sender, message)
            case Beat():
                self._beat(node, sender, message)
            case Loading() | Loaded() | NotLoaded():
                self._loaded(node, message)
            case Leave():
                self._leave(node, message)
            case Call():
                self._call(sender, message, decode_payload(frames))
            case Ask():
                route, request = sender.route, message.request
                form = decode_payload(frames)
                self.answers.begin((route, request), sender.key, form, lambda out: self._outbox.put((route, out)))
            case Cancel():
                self.answers.cancel((sender.route, message.request))
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} message on a cluster socket")

    def _adopt(self, sender: Sender, message: Adopt) -> None:
        if news := self.registry.adopt(sender.key, sender.host, message):
            self.members.version += 1
            self._on_event(news)
        self._send(sender.route, [encode(Enrolled(self.registry.cluster.id, self._identity.name))])

    def _enrol(self, node: str, sender: Sender, facts: Enrol) -> None:
        now_s = time.monotonic()
        if facts.version.split(".")[:2] != __version__.split(".")[:2]:
            raise UsageError(f"it runs edgepp {facts.version}, and this cluster {__version__}", "install the same one")
        new = (old := self.members.get(node)) is None or old.phase is Phase.GONE
        if reason := self.members.enrol(node, sender.key, facts, sender.route, sender.host, now_s):
            if self._rarely.tells(sender.host, "double"):
                self._on_event(f"refused {facts.name} at {sender.host}: {reason}")
            raise UsageError(reason)
        self.director.remind(node)
        self._send(sender.route, [encode(Enrolled(self.registry.cluster.id, self._identity.name))])
        self._viewed = -1
        if new:
            self._on_event(f"{facts.name} joined from {sender.host} with {facts.memory / 1e9:.1f} GB ({facts.backend})")
        elif old is not None and old.host != sender.host:
            self._on_event(f"{facts.name} moved from {old.host} to {sender.host}")

    def _beat(self, node: str, sender: Sender, beat: Beat) -> None:
        now_us = time.time_ns() // 1000
        off_us = beat.clock_us + beat.rtt_us // 2 - now_us
        known = self.members.heard(node, beat, off_us, sender.route, sender.host, time.monotonic())
        self._send(sender.route, [encode(Beaten(known, now_us))])

    def _loaded(self, node: str, message: Loading | Loaded | NotLoaded) -> None:
        member = self.members.get(node)
        if member is None or message.plan != self.director.number:
            return
        slot, now_s = (node, message.slot), time.monotonic()
        match message:
            case Loading():
                self.director.progress(node, message.slot, now_s)
                self.progress[slot] = Progress(message.done, message.total, f"{member.facts.name} {message.what}")
            case Loaded():
                self.progress.pop(slot, None)
                self.members.loaded(node, message.slot, message)
            case NotLoaded():
                self.progress.pop(slot, None)
                self.members.loaded(node, message.slot, None)
                self.director.failed(node, message, now_s)
                self.serving.shut(f"{member.facts.name}: {message.reason}")
                hint = f"; {message.hint}" if message.hint else ""
                self._on_event(f"{member.facts.name} cannot run its layers: {message.reason}{hint}")

    def _leave(self, node: str, message: Leave) -> None:
        member = self.members.get(node)
        if member is not None and member.facts.incarnation == message.incarnation:
            self.members.left(node)
            self._on_event(f"{member.facts.name} left")

    def _call(self, sender: Sender, message: Call, form: dict[str, Any]) -> None:
        if message.verb not in ("status", "peers") and sender.key != self._identity.keys.public:
            raise UsageError(f"only the coordinator's own machine may do that: run it on {self._identity.name}")
        match message.verb:
            case "status":
                answer = report(self)
            case "peers":
                answer = self.registry.peers({member.node: member.phase.value for member in self.members})
            case "invite":
                answer = {"code": self._desk.invite(), "port": self.address.port, "addresses": usable_addresses()}
            case "token":
                answer = self.registry.token()
            case "revoke":
                answer = self._revoke(str(form.get("node", "")))
        self._send(sender.route, [encode(Reply(message.request)), encode_payload(answer)])

    def _revoke(self, name: str) -> dict[str, Any]:
        """Admit a node or token no longer, and drop it at once."""
        gone = self.registry.revoke(name)
        for route, request in self.answers.cancel_of(gone.key):
            self._send(route, [encode(Declined(request, f"{self._identity.name} revoked this node", ""))])
            self._revoked.add(route)
        member = self.members.get(gone.node)
        if member is not None:
            self._send(member.route, [encode(Expelled(f"{self._identity.name} revoked this node"))])
            self.members.left(member.node)
        self.members.version += 1
        self._on_event(f"revoked {gone.name}")
        return {"revoked": gone.name, "node": gone.node}


def _endpoint(member: Member, port: int) -> Endpoint:
    """Where a member's stage may be reached: the address that it is heard from first."""
    hosts = dict.fromkeys((member.host, *filter(None, member.facts.addresses.split(","))))
    return Endpoint(tuple(Address(host, port) for host in hosts), member.key)
