"""The node's side of membership: finds the coordinator, enrols, sends heartbeats, and runs the layers it is assigned.

The node connects and the coordinator listens, so a node that slept, changed its address or lost its link comes back by
itself, with its stage processes as they were.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from edgepp.cluster.discovery.network_interfaces import AddressWatch
from edgepp.cluster.identity import Cluster, Identity
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError, PairingError, PeerLost, RemoteProtocolError
from edgepp.events import CoordinatorLost, CoordinatorReached, OnEvent, StageFailed
from edgepp.node.offer import Offer
from edgepp.node.supervisor import Report, StageSupervisor
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, decode_payload, encode
from edgepp.wire.messages import (
    MAX_PAYLOAD_BYTES,
    Enrolled,
    Expelled,
    Heartbeat,
    HeartbeatAck,
    Leave,
    Load,
    Message,
    NotLoaded,
    Refused,
    Restart,
    Retire,
    Unload,
    View,
)
from edgepp.wire.permissions import check_speaker
from edgepp.wire.security import Pinned
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Address, Link

log = logging.getLogger("edgepp.node")

HEARTBEAT_INTERVAL_S = 0.5
COORDINATOR_SILENCE_S = 2.0
"""The node connects again to a coordinator that is silent for this long."""
_ATTEMPT_S = 2.0
"""Timeout of one attempt to connect, and of the reply to ``Enrol``."""
_MAX_MESSAGES_PER_TURN = 100
"""Messages that are handled before the next heartbeat gets its turn."""
_DUPLICATE_GRACE_S = 6.0
"""How long refusals are not final: the coordinator may still know an earlier process of this node, now ended."""


class NodeAgent(threading.Thread):
    """Membership of this machine in a cluster, until closed, expelled or refused."""

    def __init__(
        self,
        identity: Identity,
        cluster: Cluster,
        offer: Offer,
        coordinator_addresses: Callable[[], Sequence[Address]],
        on_event: OnEvent,
        on_address_change: Callable[[], None] = lambda: None,
        on_view: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """Prepare a node; ``start`` begins.

        ``coordinator_addresses`` returns the addresses at which the coordinator may be now. ``on_address_change`` is
        called when this machine has another address, or has slept; ``on_view`` with every new view of the cluster.
        """
        super().__init__(name="node", daemon=True)
        self._identity = identity
        self._cluster = cluster
        self._offer = offer
        self._coordinator_addresses = coordinator_addresses
        self._on_event = on_event
        self._on_address_change = on_address_change
        self._on_view = on_view
        self._incarnation = secrets.randbits(62)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outbox: Mailbox[Report | None] = Mailbox()
        self._reports: deque[Report] = deque()
        """Reports that no connection has taken yet, oldest first."""
        self._watch = AddressWatch()
        self._log_sampler = LogSampler()
        self._heartbeat_sent_s = self._heartbeat_s = self._heard_s = 0.0
        self._rtt_us = 0
        self.address: Address | None = None
        """Address at which the coordinator answered last; None before."""
        self.error: EdgeppError | None = None
        """Why the membership ended by itself; None while it lasts, and after ``close``."""
        self.ended = threading.Event()
        """Set when the thread has ended."""
        self._closing = False
        self._supervisors = [
            StageSupervisor(
                i,
                offer.stage_settings(i, identity, cluster.coordinator.key),
                self._outbox.put,
                offer.memory_bytes // offer.stage_slots,
            )
            for i in range(offer.stage_slots)
        ]

    def close(self) -> None:
        """End the stage processes and tell the coordinator; the machine stays paired."""
        self._closing = True
        self._outbox.put(None)
        self.join()
        self._outbox.close()

    def run(self) -> None:
        """Take part in the cluster until closed, expelled or refused."""
        for supervisor in self._supervisors:
            supervisor.start()
        try:
            while not self._closing:
                link = self._find_coordinator()
                if link is not None:
                    try:
                        self._serve(link)
                    finally:
                        link.close(linger_s=0.2)
        except EdgeppError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - the boundary of the thread
            self.error = explained(error)
        finally:
            for supervisor in self._supervisors:
                supervisor.close()
            self._context.term()
            self.ended.set()

    def _find_coordinator(self) -> Link | None:
        """Link to the coordinator after enrolling; None when the node is closing.

        Raises:
            PairingError: The coordinator refuses this node.
        """
        refused_s = 0.0
        reported = False
        while not self._closing:
            try:
                link = self._reach()
            except (PeerLost, RemoteProtocolError) as error:
                refused_s = 0.0
                if not reported:
                    reported = True
                    self._on_event(CoordinatorLost(self._cluster.coordinator.name, str(error)))
                time.sleep(0.2)
                continue
            try:
                reason = self._enrol(link)
            except BaseException:
                link.close()
                raise
            if reason is None:
                self._on_enrolled(link)
                return link
            link.close()
            refused_s = (refused_s or time.monotonic()) if reason else 0.0
            if reason and time.monotonic() - refused_s > _DUPLICATE_GRACE_S:
                raise PairingError(
                    f"{self._cluster.coordinator.name} refused this node: {reason}",
                    "end the other node, or give this node its own configuration with EDGEPP_HOME",
                )
            time.sleep(0.5)
        return None

    def _reach(self) -> Link:
        """Link to the coordinator at the address that answers first; all get a heartbeat, which changes nothing."""
        protection = Pinned(self._identity.keys, self._cluster.coordinator.key)
        link, _ = connect_first(
            self._context, self._coordinator_addresses(), self._heartbeat(), _ATTEMPT_S, MAX_PAYLOAD_BYTES, protection
        )
        return link

    def _enrol(self, link: Link) -> str | None:
        """Enrol on ``link``; None for an enrolled node, else the reason of the refusal, empty without a reply."""
        link.send([self._enrolment()], _ATTEMPT_S)
        until_s = time.monotonic() + _ATTEMPT_S
        while time.monotonic() < until_s:
            frames = link.receive(0.2)
            if frames is None:
                continue
            match decode(frames[0]):
                case Enrolled():
                    return None
                case Refused(reason=reason):
                    return reason
                case Expelled(reason=reason):
                    raise self._expelled(link, reason)
                case message:
                    log.debug("a %s message before the reply to Enrol", type(message).__name__)
        return ""

    def _enrolment(self) -> bytes:
        return encode(self._offer.enrolment(self._identity.name, self._incarnation))

    def _on_enrolled(self, link: Link) -> None:
        self._heard_s = time.monotonic()
        self._heartbeat_sent_s = 0.0
        if link.address != self.address:
            self._on_event(CoordinatorReached(self._cluster.coordinator.name, str(link.address)))
        self.address = link.address

    def _serve(self, link: Link) -> None:
        """Send heartbeats and handle messages until the node closes, moves, or misses the coordinator."""
        poller = Poller[Report | None](link, self._outbox)
        while not self._closing:
            now_s = time.monotonic()
            if self._watch.changed():
                self._on_address_change()
                return
            if now_s - self._heard_s > COORDINATOR_SILENCE_S:
                return
            if now_s - self._heartbeat_s >= HEARTBEAT_INTERVAL_S:
                self._send_heartbeat(link, now_s)
                self._send_reports(link)
            for reader in poller.wait(0.1):
                if reader is link:
                    self._receive(link)
                else:
                    self._send_reports(link)
        link.send([encode(Leave(self._incarnation))])

    def _send_heartbeat(self, link: Link, now_s: float) -> None:
        self._heartbeat_s = now_s
        if link.send([encode(self._heartbeat())]) and not self._heartbeat_sent_s:
            self._heartbeat_sent_s = time.monotonic()

    def _heartbeat(self) -> Heartbeat:
        free = self._offer.memory_bytes - sum(supervisor.resident_bytes for supervisor in self._supervisors)
        return Heartbeat(self._incarnation, max(0, free), time.time_ns() // 1000, self._rtt_us)

    def _send_reports(self, link: Link) -> None:
        for report in self._outbox.drain():
            if report is None:
                continue
            self._reports.append(report)
            if isinstance(report, NotLoaded):
                again = "; it is started again" if report.restarting else ""
                self._on_event(StageFailed(report.slot, report.reason + again))
        while self._reports and link.send([encode(self._reports[0])]):
            self._reports.popleft()

    def _receive(self, link: Link) -> None:
        for _ in range(_MAX_MESSAGES_PER_TURN):
            try:
                frames = link.receive()
                if frames is None:
                    return
                message = decode(frames[0])
                check_speaker(message, "cluster", "coordinator")
                self._handle(link, message, frames)
            except RemoteProtocolError as error:
                if self._log_sampler.should_log("frame", type(error).__name__):
                    log.warning("dropped a message of the coordinator: %s", error)
            except EdgeppError:
                raise
            except Exception as error:
                if self._log_sampler.should_log("message", type(error).__name__):
                    log.exception("a message of the coordinator failed")

    def _handle(self, link: Link, message: Message, frames: Sequence[memoryview]) -> None:
        self._heard_s = time.monotonic()
        match message:
            case HeartbeatAck():
                if self._heartbeat_sent_s:
                    self._rtt_us, self._heartbeat_sent_s = int((self._heard_s - self._heartbeat_sent_s) * 1e6), 0.0
                if not message.known:
                    link.send([self._enrolment()])
            case View():
                self._apply_view(decode_payload(frames))
            case Load() if message.slot < len(self._supervisors):
                self._supervisors[message.slot].assign(message)
            case Unload() if message.slot < len(self._supervisors):
                self._supervisors[message.slot].assign(None)
            case Restart() | Retire() if message.slot < len(self._supervisors):
                self._supervisors[message.slot].order(message)
            case Expelled():
                raise self._expelled(link, message.reason)
            case Refused():
                raise PairingError(f"{self._cluster.coordinator.name} refused this node: {message.reason}")
            case Enrolled():
                return
            case _:
                raise RemoteProtocolError(f"an unexpected {type(message).__name__} message")

    def _expelled(self, link: Link, reason: str) -> PairingError:
        """Answer the coordinator, which waits for Leave before it closes; the error that ends this node."""
        link.send([encode(Leave(self._incarnation))])
        return PairingError(
            f"{self._cluster.coordinator.name}: {reason}",
            "pair this machine again: `edgepp invite` there, then `edgepp join CODE`",
        )

    def _apply_view(self, view: dict[str, Any]) -> None:
        keys = view.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) and is_key(key) for key in keys):
            raise RemoteProtocolError("a view of the cluster without the keys of its members")
        for supervisor in self._supervisors:
            supervisor.admit(keys)
        self._on_view(view)
