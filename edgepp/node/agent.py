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
from edgepp.errors import EdgeppError, PairingError, RemoteProtocolError
from edgepp.events import CoordinatorReached, OnEvent, StageFailed, Woke
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
from edgepp.node.coordinator_search import CoordinatorSearch, expulsion
from edgepp.node.offer import Offer
from edgepp.node.supervisor import Report
from edgepp.node.workers import NodeOrder, NodeWorkers
from edgepp.structured_log import name_process
from edgepp.wire.address import Address
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, decode_payload, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Refused
from edgepp.wire.messages.nodes import (
    Drained,
    Enrol,
    Enrolled,
    Expelled,
    Heartbeat,
    HeartbeatAck,
    Leave,
    Leaving,
    NotLoaded,
    View,
)
from edgepp.wire.messages.rank_meetings import SumMeasured
from edgepp.wire.permissions import check_speaker
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Link

log = logging.getLogger("edgepp.node")

HEARTBEAT_INTERVAL_S = 0.5
COORDINATOR_SILENCE_S = 2.0
"""The node connects again to a coordinator that is silent for this long."""
DRAIN_S = 20.0
"""How long a node that leaves waits until its layers have moved to the others."""
_MAX_MESSAGES_PER_TURN = 100
"""Messages that are handled before the next heartbeat gets its turn."""
_DRAIN_CHECK_S = 0.1


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
        sleep: SleepInhibitor | None = None,
        sure_addresses: Callable[[], Sequence[Address]] | None = None,
    ) -> None:
        """Prepare a node; ``start`` begins.

        ``coordinator_addresses`` returns the addresses at which the coordinator may be now, and ``sure_addresses``
        those that no stranger can have announced; None where that is all of them. ``on_address_change`` is
        called when this machine has another address, or has slept; ``on_view`` with every new view of the cluster.
        ``sleep`` keeps this machine awake while answers are under way; None lets it sleep.
        """
        super().__init__(name="node", daemon=True)
        self._identity = identity
        name_process(identity.name)
        self._cluster = cluster
        self._offer = offer
        self._on_event = on_event
        self._on_address_change = on_address_change
        self._on_view = on_view
        self._incarnation = secrets.randbits(62)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._outbox: Mailbox[Report | SumMeasured | None] = Mailbox()
        self._reports: deque[Report | SumMeasured] = deque()
        """Reports that no connection has taken yet, oldest first."""
        self._watch = AddressWatch()
        self._sleep = sleep or SleepInhibitor(allow_sleep=True)
        self._is_working = False
        """Whether answers are under way, as the coordinator said last."""
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
        self._drained = threading.Event()
        self._draining = False
        self._leaving_sent_s = 0.0
        self._search = CoordinatorSearch(
            *(self._context, identity, cluster, coordinator_addresses),
            *(self._heartbeat, self._enrolment, on_event, sure_addresses),
        )
        self._workers = NodeWorkers(offer, identity, cluster.coordinator.key, self._outbox.put)

    @property
    def has_layers(self) -> bool:
        """Whether the node has a stage process, or starts one."""
        return self._workers.has_layers

    @property
    def _computes(self) -> bool:
        """Whether answers need this machine: for its layers, or since it coordinates."""
        return self.has_layers or self._identity.node == self._cluster.coordinator.node

    def drain(self, given_up: threading.Event) -> None:
        """Ask the coordinator to move this node's layers to the others, and wait until it has.

        The wait ends after ``DRAIN_S`` seconds; at once where the node has no layers, is closed, or does not reach the
        coordinator, or when ``given_up`` is set. Call ``close`` afterwards.
        """
        until_s = time.monotonic() + DRAIN_S
        self._draining = True
        self._outbox.put(None)
        while self.has_layers and not self._drained.wait(_DRAIN_CHECK_S):
            now_s = time.monotonic()
            silent = now_s - self._heard_s > 2 * COORDINATOR_SILENCE_S
            if silent or now_s > until_s or self._closing or self.ended.is_set() or given_up.is_set():
                return

    def close(self) -> None:
        """End the stage processes and tell the coordinator; the machine stays paired. A second call does nothing."""
        if self._closing:
            return
        self._closing = True
        self._outbox.put(None)
        self.join()
        self._outbox.close()

    def run(self) -> None:
        """Take part in the cluster until closed, expelled or refused."""
        self._workers.start()
        try:
            while not self._closing:
                link = self._search.find(lambda: self._closing)
                if link is not None:
                    self._on_enrolled(link)
                    try:
                        self._serve(link)
                    finally:
                        self._is_working = False
                        self._sleep.release()
                        link.close(linger_s=0.2)
        except EdgeppError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - the boundary of the thread
            self.error = explained(error)
        finally:
            self._workers.close()
            self._context.term()
            self.ended.set()

    def _on_enrolled(self, link: Link) -> None:
        self._heard_s = time.monotonic()
        self._heartbeat_sent_s = self._leaving_sent_s = 0.0
        if link.address != self.address:
            self._on_event(CoordinatorReached(self._cluster.coordinator.name, str(link.address)))
        self.address = link.address

    def _serve(self, link: Link) -> None:
        """Send heartbeats and handle messages until the node closes, moves, or misses the coordinator."""
        poller = Poller[Report | SumMeasured | None](link, self._outbox)
        while not self._closing:
            now_s = time.monotonic()
            if self._watch.changed():
                if self._watch.slept_s:
                    self._on_event(Woke(self._watch.slept_s))
                self._on_address_change()
                return
            if now_s - self._heard_s > COORDINATOR_SILENCE_S:
                return
            if now_s - self._heartbeat_s >= HEARTBEAT_INTERVAL_S:
                self._send_heartbeat(link, now_s)
                self._send_reports(link)
            if self._draining and now_s - self._leaving_sent_s >= HEARTBEAT_INTERVAL_S:  # a message may be lost
                self._leaving_sent_s = now_s
                link.send([encode(Leaving(self._incarnation))])
            self._sleep.update(working=self._is_working and self._computes)
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

    def _enrolment(self) -> Enrol:
        return self._offer.enrolment(self._identity.name, self._incarnation)

    def _heartbeat(self) -> Heartbeat:
        free = self._offer.memory_bytes - self._workers.resident_bytes
        return Heartbeat(self._incarnation, max(0, free), time.time_ns() // 1000, self._rtt_us, self._sleep.state)

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
                self._take(link, message, frames)
            except RemoteProtocolError as error:
                if self._log_sampler.should_log("frame", type(error).__name__):
                    log.warning("dropped a message of the coordinator: %s", error)
            except EdgeppError:
                raise
            except Exception as error:
                if self._log_sampler.should_log("message", type(error).__name__):
                    log.exception("a message of the coordinator failed")

    def _take(self, link: Link, message: Message, frames: Sequence[memoryview]) -> None:
        self._heard_s = time.monotonic()
        match message:
            case HeartbeatAck():
                self._is_working = message.working
                if self._heartbeat_sent_s:
                    self._rtt_us, self._heartbeat_sent_s = int((self._heard_s - self._heartbeat_sent_s) * 1e6), 0.0
                if not message.known:
                    link.send([encode(self._enrolment())])
            case View():
                self._apply_view(decode_payload(frames))
            case _ if isinstance(message, NodeOrder):
                self._workers.follow(message)
            case Expelled():
                link.send([encode(Leave(self._incarnation))])  # the coordinator waits for it before it closes
                raise expulsion(self._cluster, message.reason)
            case Refused():
                raise PairingError(f"{self._cluster.coordinator.name} refused this node: {message.reason}")
            case Drained() if message.incarnation == self._incarnation:
                self._drained.set()
            case Enrolled() | Drained():
                return
            case _:
                raise RemoteProtocolError(f"an unexpected {type(message).__name__} message")

    def _apply_view(self, view: dict[str, Any]) -> None:
        keys = view.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) and is_key(key) for key in keys):
            raise RemoteProtocolError("a view of the cluster without the keys of its members")
        self._workers.admit(keys)
        self._on_view(view)
