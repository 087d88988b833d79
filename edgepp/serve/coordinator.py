"""The coordinator of a cluster: one thread that owns its socket, and with it the members and the plan in force.

It hands what arrives to whom it concerns: ``Attendance`` (members), ``Rollout`` (loads), ``Answers`` (questions). What
takes time happens in other threads: pipelines are opened by ``Serving``, answers given by ``Answers``, which puts what
is to be sent into this thread's mailbox. Who sent a message is known by the key that its connection proved.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from edgepp.cluster.identity import Cluster, Identity
from edgepp.cluster.identity import Member as Paired
from edgepp.cluster.membership import Membership
from edgepp.errors import EdgeppError, RemoteProtocolError, UsageError
from edgepp.serve.answers import Answers
from edgepp.serve.attendance import Attendance
from edgepp.serve.director import Director, Order
from edgepp.serve.entrance import Entrance
from edgepp.serve.registry import Registry
from edgepp.serve.report import report
from edgepp.serve.rollout import Rollout
from edgepp.serve.serving import Serving
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.messages import (
    PAYLOAD_BYTES,
    Adopt,
    Ask,
    Beat,
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
    Waiting,
    decode,
    decode_payload,
    encode,
    encode_payload,
)
from edgepp.wire.security import Gate, Rarely
from edgepp.wire.speakers import VERBS_OF_OWNER, check_speaker
from edgepp.wire.transport import Address, Listener, Sender
from edgepp.wire.values import is_key, sentence

log = logging.getLogger("edgepp.serve")

TICK_S = 0.1
_WAITING_S = 1.0
_MOST_A_TURN = 100
"""Messages that are taken before a round has its turn."""

Outgoing = tuple[bytes, list[bytes]] | None


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
        self.rollout = Rollout(director, self.members, serving, self.answers, on_event)
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
        self._entrance = Entrance(identity, self.address, lambda: self.registry.cluster, self._paired, on_event)
        self._attendance = Attendance(self.members, identity, self.registry, director, self._send, on_event)
        self._waited_s = self._ticked_s = 0.0
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
            self._entrance.close()
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
            try:
                self._tick(now_s)
            except Exception as error:  # such as no descriptor left: it costs this round
                if self._rarely.tells("round", type(error).__name__):
                    log.exception("a round of the coordinator failed")
        return True

    def _tick(self, now_s: float) -> None:
        self._ticked_s = now_s
        self._entrance.announce()
        self._attendance.tick(now_s)
        self._order(self.rollout.step(now_s))
        self._attendance.publish()
        if now_s - self._waited_s >= _WAITING_S:
            self._waited_s = now_s
            for route, request in self.answers.askers:
                self._send(route, [encode(Waiting(request, sentence(self.rollout.waiting())))])

    def _order(self, orders: Sequence[Order]) -> None:
        for node, message in orders:
            member = self.members.get(node)
            if member is not None:
                self._send(member.route, [encode(message)])

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
        """Take what waits, but not for ever: rounds have their turn under a flood too."""
        for _ in range(_MOST_A_TURN):
            try:
                received = self._listener.receive_from()
                if received is None:
                    return
                self.take(*received)
            except RemoteProtocolError as error:
                if self._rarely.tells("frame", type(error).__name__):
                    log.warning("dropped a frame: %s", error)
            except Exception as error:
                if self._rarely.tells("message", type(error).__name__):
                    log.exception("a message failed")

    def take(self, sender: Sender, frames: Sequence[memoryview]) -> None:
        """Do what one message says, or tell its sender why not.

        Raises:
            RemoteProtocolError: it is none.
        """
        message = decode(frames[0])
        try:
            self._take(sender, message, frames)
        except EdgeppError as error:
            if self._rarely.tells(sender.host, type(message).__name__):
                log.info("refused %s of %s: %s", type(message).__name__, sender.host, error)
            request = getattr(message, "request", None)
            refusal: Message = Refused(sentence(error))
            if request is not None:
                refusal = Declined(request, sentence(error), sentence(error.hint))
            self._send(sender.route, [encode(refusal)])

    def _take(self, sender: Sender, message: Message, frames: Sequence[memoryview]) -> None:
        if isinstance(message, Adopt):
            self._adopt(sender, message)
            return
        node = self.registry.node_of(sender.key)
        check_speaker(message, "cluster", "member")
        match message:
            case Enrol():
                self._attendance.enrol(node, sender, message)
            case Beat():
                self._attendance.beat(node, sender, message)
            case Loading() | Loaded() | NotLoaded():
                self.rollout.heard(node, message, time.monotonic())
            case Leave():
                self._attendance.leave(node, message)
            case Call():
                self._call(sender, message, decode_payload(frames))
            case Ask():
                route, request = sender.route, message.request
                form = decode_payload(frames)
                self.answers.begin((route, request), sender.key, form, lambda out: self._outbox.put((route, out)))
            case Cancel():
                self.answers.cancel((sender.route, message.request))

    def _adopt(self, sender: Sender, message: Adopt) -> None:
        if news := self.registry.adopt(sender.key, sender.host, message):
            self.members.version += 1
            self._on_event(news)
        self._send(sender.route, [encode(Enrolled(self.registry.cluster.id, self._identity.name))])

    def _call(self, sender: Sender, message: Call, form: dict[str, Any]) -> None:
        if message.verb in VERBS_OF_OWNER and sender.key != self._identity.keys.public:
            raise UsageError(f"only the coordinator's own machine may do that: run it on {self._identity.name}")
        match message.verb:
            case "status":
                answer = report(self)
            case "peers":
                answer = self.registry.peers({member.node: member.phase.value for member in self.members})
            case "invite":
                answer = self._entrance.invite()
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
