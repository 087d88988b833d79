"""The coordinator of a cluster: one thread that owns its socket, and with it the members and the plan in force.

The thread hands each message to the part that it concerns: ``MembershipService`` (members), ``Rollout`` (loads),
``AnswerService`` (questions). What takes time happens in other threads: ``PipelineManager`` opens pipelines, and
``AnswerService`` puts pieces of answers into this thread's mailbox. A sender is known by the key that its connection
proved.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import zmq

from edgepp.cluster.identity import Cluster, Identity, clean_name
from edgepp.cluster.identity import PairedNode as Paired
from edgepp.cluster.membership import GONE_S, Membership
from edgepp.coordinator.answers import AnswerService, Asker, declined
from edgepp.coordinator.fair_shares import FairQueue
from edgepp.coordinator.join_endpoint import JoinEndpoint
from edgepp.coordinator.membership_service import MembershipService
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Order, Planner
from edgepp.coordinator.rollout import Rollout
from edgepp.coordinator.status import StatusSources, cluster_status
from edgepp.coordinator.trust_store import TrustStore
from edgepp.errors import EdgeppError, RemoteProtocolError, UsageError
from edgepp.events import NodeChanged, NodeRefused, NodeRevoked, OnEvent, StepFailed
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, decode_payload, encode, encode_payload
from edgepp.wire.messages import (
    MAX_PAYLOAD_BYTES,
    Adopt,
    Ask,
    Call,
    Cancel,
    Enrol,
    Enrolled,
    Expelled,
    Heartbeat,
    Leave,
    Loaded,
    Loading,
    Message,
    NotLoaded,
    Refused,
    Reply,
    Waiting,
)
from edgepp.wire.permissions import VERBS_OF_OWNER, check_speaker
from edgepp.wire.security import Gate
from edgepp.wire.text_fields import is_key, sentence
from edgepp.wire.transport import Address, Listener, Sender

log = logging.getLogger("edgepp.coordinator")

TICK_S = 0.1
FAREWELL_S = GONE_S
"""How long members have to leave a cluster that ends; a silent one is gone by then."""
_LAST_ANSWERS_S = 0.2
"""How long connections stay open behind the last answers."""
_WAITING_S = 1.0
_MOST_WAITING = 256
"""Messages of one owner that wait for their turn; more are declined."""
_MOST_BYTES = 4 * MAX_PAYLOAD_BYTES
_RECEIVED_A_TURN = 512
_HANDLED_A_TURN_S = 0.05

Outgoing = tuple[Asker, list[bytes]] | None
Received = tuple[Sender, Message, Sequence[memoryview]]


class Coordinator(threading.Thread):
    """Serves one cluster until it is closed."""

    def __init__(
        self,
        identity: Identity,
        cluster: Cluster,
        listen: Address,
        director: Planner,
        serving: PipelineManager,
        on_event: OnEvent,
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
        self._own = director.known
        """Nodes that are expected although the book does not name them: this machine's own."""
        self.members = Membership()
        self.answers = AnswerService(serving)
        self.rollout = Rollout(director, self.members, serving, self.answers, on_event)
        self._outbox: Mailbox[Outgoing] = Mailbox()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate(self._context, self._refused)
        try:
            self.registry = TrustStore(identity, cluster, self._gate)
            self._listener = Listener(self._context, listen, MAX_PAYLOAD_BYTES, identity.keys)
        except EdgeppError:
            self._gate.close()
            self._outbox.close()
            self._context.term()
            raise
        self.address = self._listener.address
        self._sources = StatusSources(
            self.registry, self.members, director, self.rollout, serving, self.answers, self.address, time.monotonic()
        )
        self.registry.reached_at(self.here)
        self._entrance = JoinEndpoint(identity, self.address, lambda: self.registry.cluster, self._paired, on_event)
        self._attendance = MembershipService(self.members, identity, self.registry, director, self._send, on_event)
        self._waited_s = self._ticked_s = 0.0
        self._turns: FairQueue[Received] = FairQueue(_MOST_WAITING, _MOST_BYTES)
        self._rarely = LogSampler()
        self._revoked: set[Asker] = set()
        """Those who were revoked in the middle of an answer, until its thread has ended."""
        self._dissolving = False
        self._dissolved = threading.Event()
        self.error: BaseException | None = None
        """What ended the thread by itself."""

    @property
    def here(self) -> Address:
        """Where this machine's own processes reach it."""
        everywhere = self.address.host in ("*", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
        return Address("127.0.0.1", self.address.port) if everywhere else self.address

    def status(self) -> dict[str, Any]:
        """The cluster's state: what `edgepp status --json` prints."""
        return cluster_status(self._sources)

    @property
    def reason(self) -> str:
        """What answers wait for, and for which machines; empty where there is a pipeline."""
        return self.rollout.waiting(self.registry.away({member.node for member in self.members.present}))

    def close(self) -> None:
        """End answers and the thread; members look for a new coordinator."""
        with suppress(OSError):  # it has ended by itself
            self._outbox.put(None)
        self.join()

    def dissolve(self) -> None:
        """Tell every member that the cluster ends; wait until all have left, for ``FAREWELL_S`` at most.

        A member that is not told would look for this coordinator for ever. Safe from any other thread.
        """
        self._dissolving = True
        self._dissolved.wait(FAREWELL_S)

    def run(self) -> None:
        """Serve until closed."""
        poller = Poller[Outgoing](self._listener, self._outbox)
        try:
            while self._turn(poller):
                continue
        except BaseException as error:
            log.exception("the coordinator ended")
            self.error = error
        finally:
            self._dissolved.set()  # nobody is told any more
            told = False
            with self._surviving("telling askers"):
                told = self._decline_all()
            with self._surviving("closing"):
                self._listener.close(_LAST_ANSWERS_S if told else 0.0)
            for part in (self._entrance, self._gate, self._outbox):
                with self._surviving("closing"):
                    part.close()
            self._context.term()

    def _turn(self, poller: Poller[Outgoing]) -> bool:
        for reader in poller.wait(0.0 if self._turns else TICK_S):
            if reader is self._listener:
                self._receive()
                continue
            for outgoing in self._outbox.drain():
                if outgoing is None:
                    return False
                asker, frames = outgoing
                if asker not in self._revoked:
                    with self._surviving("sending"):
                        self._send(asker[0], frames)
        self.handle()
        now_s = time.monotonic()
        if now_s - self._ticked_s >= TICK_S:
            self._tick(now_s)
        return True

    def _tick(self, now_s: float) -> None:
        """What is due now and then; each part by itself, so that one that fails keeps no other from its turn."""
        self._ticked_s = now_s
        with self._surviving("announcing"):
            self._entrance.announce()
        with self._surviving("attendance"):
            self._attendance.tick(now_s)
        with self._surviving("planning"):
            if self._dissolving:
                self._expel_all()
            else:
                self.director.known = frozenset({*self.registry.nodes, *self._own})
                self._order(self.rollout.step(now_s))
        with self._surviving("telling the members"):
            self._attendance.publish()
        if now_s - self._waited_s >= _WAITING_S:
            self._waited_s = now_s
            with self._surviving("telling askers"):
                self._tell_askers()

    def _expel_all(self) -> None:
        if self._attendance.expel_all(f"{self._identity.name} ended the cluster"):
            self._dissolved.set()

    def _decline_all(self) -> bool:
        """End every answer, and tell the askers; whether there was one."""
        askers = self.answers.askers
        self.answers.cancel_all()
        stopped = EdgeppError(f"{self._identity.name} stopped serving", "start `edgepp serve` there, then ask again")
        for asker in askers:
            if asker not in self._revoked:
                self._send(asker[0], declined(asker[1], stopped))
        return bool(askers)

    def _tell_askers(self) -> None:
        askers = self.answers.askers
        self._revoked.intersection_update(askers)
        waiting = sentence(self.reason) if askers else ""
        for asker in askers:
            if asker not in self._revoked:
                self._send(asker[0], [encode(Waiting(asker[1], waiting))])

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Let an unexpected error cost this one step, not the coordinator."""
        try:
            yield
        except Exception as error:
            log.exception("%s failed", what)
            if self._rarely.should_log(type(error).__name__, what):
                self._on_event(StepFailed(what, f"{type(error).__name__}: {error}"))

    def _order(self, orders: Sequence[Order]) -> None:
        for node, message in orders:
            member = self.members.get(node)
            if member is not None:
                self._send(member.route, [encode(message)])

    def _refused(self, host: str, why: str) -> None:
        reason = f"its key {why[:8]}… is not admitted" if is_key(why) else why
        self._on_event(NodeRefused("a stranger", host, reason))

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
        """Let what has come wait for its turn: whoever sends much delays itself, not the others."""
        for _ in range(_RECEIVED_A_TURN):
            try:
                received = self._listener.receive_even_revoked()
                if received is None:
                    return
            except RemoteProtocolError as error:
                if self._rarely.should_log("frame", type(error).__name__):
                    log.warning("dropped a frame: %s", error)
                continue
            except Exception as error:  # such as no memory for it, or no descriptor
                log.exception("a message could not be received")
                if self._rarely.should_log(type(error).__name__, "receiving"):
                    self._on_event(StepFailed("receiving a message", f"{type(error).__name__}: {error}"))
                return
            with self._surviving("taking a message"):
                self.take(*received)

    def take(self, sender: Sender, frames: Sequence[memoryview]) -> None:
        """Let a message wait for its sender's turn, or tell the sender why it is none or one too many."""
        try:
            message = decode(frames[0])
        except RemoteProtocolError as error:
            if self._rarely.should_log(sender.host, "frame"):
                log.warning("refused a frame of %s: %s", sender.host, error)
            self._send(sender.route, [encode(Refused(sentence(error)))])
            return
        item = (sender, message, frames)
        if not self._turns.add(sender.key, item, sum(frame.nbytes for frame in frames)):
            request = getattr(message, "request", None)
            if request is not None:
                busy = EdgeppError(f"{_MOST_WAITING} messages of yours are waiting already", "send them slower")
                self._send(sender.route, declined(request, busy))

    def handle(self) -> None:
        """Handle what waits, one owner after the other, for no longer than other duties can wait."""
        until_s = time.monotonic() + _HANDLED_A_TURN_S
        while self._turns and time.monotonic() < until_s:
            sender, message, frames = self._turns.take()
            request = getattr(message, "request", None)
            with self._surviving(f"a {type(message).__name__} message"):
                try:
                    self._take(sender, message, frames)
                except EdgeppError as error:
                    if self._rarely.should_log(sender.host, type(message).__name__):
                        log.info("refused %s of %s: %s", type(message).__name__, sender.host, error)
                    refusal = [encode(Refused(sentence(error)))] if request is None else declined(request, error)
                    self._send(sender.route, refusal)
                except Exception as error:
                    if request is not None:
                        failure = EdgeppError(f"the coordinator failed: {type(error).__name__}: {error}")
                        self._send(sender.route, declined(request, failure))
                    raise

    def _take(self, sender: Sender, message: Message, frames: Sequence[memoryview]) -> None:
        if isinstance(message, Adopt):
            self._adopt(sender, message)
            return
        node = self.registry.node_of(sender.key)
        check_speaker(message, "cluster", "member")
        match message:
            case Enrol():
                self._attendance.enrol(node, sender, message)
            case Heartbeat():
                self._attendance.beat(node, sender, message)
            case Loading() | Loaded() | NotLoaded():
                self.rollout.heard(node, message, time.monotonic())
            case Leave():
                self._attendance.leave(node, message)
            case Call():
                self._call(sender, message, decode_payload(frames))
            case Ask():
                asker = (sender.route, message.request_id)
                form = decode_payload(frames)
                self.answers.begin(asker, sender.key, form, lambda out: self._outbox.put((asker, out)))
            case Cancel():
                self.answers.cancel((sender.route, message.request_id))

    def _adopt(self, sender: Sender, message: Adopt) -> None:
        adoption = self.registry.adopt(sender.key, sender.host, message)
        if adoption.refusal:
            if self._rarely.should_log(sender.host, "adopt"):
                name = clean_name(message.name)
                self._on_event(NodeRefused(name, sender.host, adoption.refusal, by_token=True))
            self._send(sender.route, [encode(Refused(sentence(adoption.refusal)))])
            return
        if adoption.paired is not None:
            self.members.version += 1
            self._on_event(adoption.paired)
        self._send(sender.route, [encode(Enrolled(self.registry.cluster.id, self._identity.name))])

    def _call(self, sender: Sender, message: Call, form: dict[str, Any]) -> None:
        if message.verb in VERBS_OF_OWNER and sender.key != self._identity.keys.public:
            raise UsageError(f"only the coordinator's own machine may do that: run it on {self._identity.name}")
        match message.verb:
            case "status":
                answer = self.status()
            case "peers":
                answer = self.registry.peers({member.node: member.phase.value for member in self.members})
            case "invite":
                self.registry.check_room()
                answer = self._entrance.invite()
            case "token":
                answer = self.registry.token()
            case "revoke":
                answer = self._revoke(str(form.get("node", "")))
            case "leave":
                answer = self._dismiss(sender.key)
        self._send(sender.route, [encode(Reply(message.request_id)), encode_payload(answer)])

    def _revoke(self, name: str) -> dict[str, Any]:
        """Admit a node or token no longer, and drop it at once."""
        gone = self.registry.revoke(name, {member.node: member.facts.name for member in self.members})
        why = f"{self._identity.name} revoked this node"
        for asker in self.answers.cancel_of(gone.key):
            self._send(asker[0], declined(asker[1], EdgeppError(why)))
            self._revoked.add(asker)
        member = self.members.get(gone.node)
        if member is not None:
            self._send(member.route, [encode(Expelled(why))])
            self.members.left(member.node, "was revoked")
        self.members.version += 1
        self._on_event(NodeRevoked(gone.name))
        kind = "token" if gone in self.registry.cluster.withdrawn else "node"
        return {"revoked": gone.name, "node": gone.node, "kind": kind, "came_by": self.registry.token_of(gone)}

    def _dismiss(self, key: str) -> dict[str, Any]:
        """Take out the node with this key, which leaves for good."""
        if key == self._identity.keys.public:
            raise UsageError("the coordinator leaves by ending", "press Ctrl-C where `edgepp serve` runs")
        gone = next(member for member in self.registry.cluster.members if member.key == key)
        self.registry.forget(gone.node)
        if self.members.get(gone.node) is not None:
            self.members.left(gone.node, "left for good")
        self.members.version += 1
        self._on_event(NodeChanged(gone.name, "left the cluster for good"))
        return {"left": gone.name}
