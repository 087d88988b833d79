"""A node's side of membership: finds the coordinator, enrols, beats, and runs what it is told to run.

The node connects, the coordinator listens: a node that slept, moved to another address or lost its link comes back by
itself, with its stages as they were.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from edgepp.cluster.discovery.network_interfaces import Watch
from edgepp.cluster.identity import Cluster, Identity
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError, PairingError, PeerLost, RemoteProtocolError
from edgepp.events import CoordinatorLost, CoordinatorReached, OnEvent, StageFailed
from edgepp.node.offer import Offer
from edgepp.node.supervisor import Report, StageSupervisor
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.messages import (
    PAYLOAD_BYTES,
    Enrolled,
    Expelled,
    Heartbeat,
    HeartbeatAck,
    Leave,
    Load,
    Message,
    NotLoaded,
    Refused,
    Unload,
    View,
    decode,
    decode_payload,
    encode,
)
from edgepp.wire.permissions import check_speaker
from edgepp.wire.security import LogSampler, Pinned
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Address, Link

log = logging.getLogger("edgepp.node")

BEAT_S = 0.5
SILENT_S = 2.0
"""A coordinator that does not answer for so long is looked for anew."""
_SEEK_S = 2.0
_MOST_A_TURN = 100
"""Messages that are taken before a beat has its turn."""
_DUPLICATE_S = 6.0
"""How long a refusal for a double id is not taken as final: the other process may be the one that just ended here."""


class NodeAgent(threading.Thread):
    """A member of a cluster, until it is closed, expelled or refused."""

    def __init__(
        self,
        identity: Identity,
        cluster: Cluster,
        offer: Offer,
        where: Callable[[], Sequence[Address]],
        on_event: OnEvent,
        on_moved: Callable[[], None] = lambda: None,
        on_view: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """``where`` says at which addresses the coordinator may be now; ``on_event`` takes what happens.

        ``on_moved`` is called when this machine has another address, or has slept; ``on_view`` with every new view.
        """
        super().__init__(name="node", daemon=True)
        self._identity = identity
        self._cluster = cluster
        self._offer = offer
        self._where = where
        self._on_event = on_event
        self._on_moved = on_moved
        self._on_view = on_view
        self._incarnation = secrets.randbits(62)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outbox: Mailbox[Report | None] = Mailbox()
        self._watch = Watch()
        self._rarely = LogSampler()
        self._beat_sent_s = self._beat_s = self._heard_s = 0.0
        self._rtt_us = 0
        self.address: Address | None = None
        """Where the coordinator was reached."""
        self.error: EdgeppError | None = None
        """Why the node is no member any more; None while it is, and after ``close``."""
        self.ended = threading.Event()
        self._closing = False
        self._slots = [
            StageSupervisor(i, offer.stage_settings(i, identity, cluster.coordinator.key), self._outbox.put)
            for i in range(offer.stage_slots)
        ]

    def close(self) -> None:
        """Leave the cluster, end the stages."""
        self._closing = True
        self._outbox.put(None)
        self.join()
        self._outbox.close()

    def run(self) -> None:
        """Be a member until closed."""
        for slot in self._slots:
            slot.start()
        try:
            while not self._closing:
                link = self._seek()
                if link is not None:
                    try:
                        self._serve(link)
                    finally:
                        link.close(linger_s=0.2)
        except EdgeppError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - the thread's boundary
            self.error = explained(error)
        finally:
            for slot in self._slots:
                slot.close()
            self._context.term()
            self.ended.set()

    def _seek(self) -> Link | None:
        """Find the coordinator and enrol; None when the node is to end."""
        refused_s = 0.0
        told = False
        while not self._closing:
            try:
                link = self._reach()
            except (PeerLost, RemoteProtocolError) as error:
                refused_s = 0.0
                if not told:
                    told = True
                    self._on_event(CoordinatorLost(self._cluster.coordinator.name, str(error)))
                time.sleep(0.2)
                continue
            reason = self._ask_in(link)
            if reason is None:
                self._found(link)
                return link
            link.close()
            refused_s = (refused_s or time.monotonic()) if reason else 0.0
            if reason and time.monotonic() - refused_s > _DUPLICATE_S:
                raise PairingError(
                    f"{self._cluster.coordinator.name} refused this node: {reason}",
                    "end the other one, or give this one its own configuration with EDGEPP_HOME",
                )
            time.sleep(0.5)
        return None

    def _reach(self) -> Link:
        """A link to the coordinator. What is sent on every way at once is a beat, which changes nothing."""
        protection = Pinned(self._identity.keys, self._cluster.coordinator.key)
        link, _ = connect_first(self._context, self._where(), self._beat_now(), _SEEK_S, PAYLOAD_BYTES, protection)
        return link

    def _ask_in(self, link: Link) -> str | None:
        """Enrol on ``link``: None when the node is in, else why not; empty when nothing was answered."""
        link.send([self._enrolment()], _SEEK_S)
        until_s = time.monotonic() + _SEEK_S
        while time.monotonic() < until_s:
            frames = link.receive(0.2)
            if frames is None:
                continue
            match decode(frames[0]):
                case Enrolled():
                    return None
                case Refused(reason=reason):
                    return reason
                case message:
                    log.debug("a %s before the enrolment", type(message).__name__)
        return ""

    def _enrolment(self) -> bytes:
        return encode(self._offer.enrolment(self._identity.name, self._incarnation))

    def _found(self, link: Link) -> None:
        self._heard_s = time.monotonic()
        self._beat_sent_s = 0.0
        if link.address != self.address:
            self._on_event(CoordinatorReached(self._cluster.coordinator.name, str(link.address)))
        self.address = link.address

    def _serve(self, link: Link) -> None:
        """Heartbeat and obey until the link is no good any more."""
        poller = Poller[Report | None](link, self._outbox)
        while not self._closing:
            now_s = time.monotonic()
            if self._watch.changed():
                self._on_moved()
                return
            if now_s - self._heard_s > SILENT_S:
                return
            if now_s - self._beat_s >= BEAT_S:
                self._beat(link, now_s)
            for reader in poller.wait(0.1):
                if reader is link:
                    self._receive(link)
                else:
                    self._report(link)
        link.send([encode(Leave(self._incarnation))])

    def _beat(self, link: Link, now_s: float) -> None:
        self._beat_s = now_s
        if link.send([encode(self._beat_now())]) and not self._beat_sent_s:
            self._beat_sent_s = time.monotonic()

    def _beat_now(self) -> Heartbeat:
        free = self._offer.memory - sum(slot.resident_bytes for slot in self._slots)
        return Heartbeat(self._incarnation, max(0, free), time.time_ns() // 1000, self._rtt_us)

    def _report(self, link: Link) -> None:
        for report in self._outbox.drain():
            if report is None:
                continue
            link.send([encode(report)], 1.0)
            if isinstance(report, NotLoaded):
                self._on_event(StageFailed(report.slot, report.reason))

    def _receive(self, link: Link) -> None:
        for _ in range(_MOST_A_TURN):
            try:
                frames = link.receive()
                if frames is None:
                    return
                message = decode(frames[0])
                check_speaker(message, "cluster", "coordinator")
                self._obey(link, message, frames)
            except RemoteProtocolError as error:
                if self._rarely.tells("frame", type(error).__name__):
                    log.warning("dropped a frame of the coordinator: %s", error)
            except EdgeppError:
                raise
            except Exception as error:
                if self._rarely.tells("message", type(error).__name__):
                    log.exception("a message of the coordinator failed")

    def _obey(self, link: Link, message: Message, frames: Sequence[memoryview]) -> None:
        self._heard_s = time.monotonic()
        match message:
            case HeartbeatAck():
                if self._beat_sent_s:
                    self._rtt_us, self._beat_sent_s = int((self._heard_s - self._beat_sent_s) * 1e6), 0.0
                if not message.known:
                    link.send([self._enrolment()])
            case View():
                self._take_view(decode_payload(frames))
            case Load() if message.slot < len(self._slots):
                self._slots[message.slot].want(message)
            case Unload() if message.slot < len(self._slots):
                self._slots[message.slot].want(None)
            case Expelled():
                raise PairingError(
                    f"{self._cluster.coordinator.name}: {message.reason}",
                    "a new code of `edgepp invite` lets it in again",
                )
            case Refused():
                raise PairingError(f"{self._cluster.coordinator.name} refused this node: {message.reason}")
            case Enrolled():
                return
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} message where none is expected")

    def _take_view(self, view: dict[str, Any]) -> None:
        keys = view.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) and is_key(key) for key in keys):
            raise RemoteProtocolError("a view without the members' keys")
        for slot in self._slots:
            slot.admit(keys)
        self._on_view(view)
