"""The coordinator of a cluster: one thread that owns the cluster socket, the members and the plan.

``Dispatcher`` passes each message to one service: ``MembershipService`` (enrolment and heartbeats), ``Rollout``
(loads), ``Drains``, ``CallService`` (calls), ``AnswerService`` (questions). Slow work runs in other threads:
``PipelineManager`` opens pipelines, and ``AnswerService`` puts pieces of answers into this thread's mailbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from edgepp.cluster.identity import Cluster, Identity, PairedNode
from edgepp.cluster.membership import GONE_S, Membership
from edgepp.coordinator.answer_service import AnswerService, Asker
from edgepp.coordinator.asker_notices import AskerNotices
from edgepp.coordinator.call_service import CallService
from edgepp.coordinator.cluster_port import ClusterPort
from edgepp.coordinator.dispatcher import Dispatcher
from edgepp.coordinator.guarded_steps import GuardedSteps
from edgepp.coordinator.handover import RolloutOrder
from edgepp.coordinator.inbox import Inbox
from edgepp.coordinator.join_endpoint import JoinEndpoint
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.coordinator.membership_service import MembershipService
from edgepp.coordinator.model_change import MakeParts, ModelChanger
from edgepp.coordinator.node_draining import Drains
from edgepp.coordinator.pipeline_manager import PipelineManager
from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rates import Rates
from edgepp.coordinator.recent_events import RecentEvents
from edgepp.coordinator.rollout import Rollout
from edgepp.coordinator.status import cluster_status
from edgepp.coordinator.status_sources import HttpAddress, StatusSources
from edgepp.coordinator.suspicions import Suspicions
from edgepp.coordinator.thread_work import ThreadWork
from edgepp.errors import EdgeppError
from edgepp.host_system.sleep_inhibitor import SleepInhibitor
from edgepp.tracing.request_trace import DEFAULT_KEPT, TraceLog
from edgepp.wire.address import Address
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import encode

log = logging.getLogger("edgepp.coordinator")

TICK_S = 0.1
"""The time between two rounds of periodic work."""
DISSOLVE_S = GONE_S
"""Seconds for members to leave a cluster that ends; a silent member counts as gone by then."""
_LAST_ANSWERS_S = 0.2
"""Seconds for which connections stay open after the last messages to askers."""

Outgoing = tuple[Asker, list[bytes]] | None


class Coordinator(threading.Thread):
    """Serves one cluster until closed."""

    def __init__(
        self,
        identity: Identity,
        cluster: Cluster,
        listen: Address,
        planner: Planner,
        pipeline_manager: PipelineManager,
        on_event: RecentEvents,
        make_parts: MakeParts,
        draft_model: str = "",
        trace_requests: int = DEFAULT_KEPT,
        sleep: SleepInhibitor | None = None,
    ) -> None:
        """Bind ``listen``; members can enrol once the thread is started. ``make_parts`` is for a change of the model.

        A member without layers guesses tokens with ``draft_model``; none does for an empty name. The newest
        ``trace_requests`` requests are traced. ``sleep`` keeps this machine awake while answers are under way; None
        where its own node does.

        Raises:
            UsageError: the address is taken.
            EdgeppError: the cluster cannot be written to disk.
        """
        super().__init__(name="coordinator", daemon=True)
        self._identity = identity
        self.planner = planner
        self.pipeline_manager = pipeline_manager
        self._sleep = sleep or SleepInhibitor(allow_sleep=True)
        self._own_nodes = planner.expected_nodes
        """Nodes that are expected although they are not paired: this machine's own."""
        self.members = Membership()
        self.live_answers = LiveAnswers(pipeline_manager, TraceLog(trace_requests))
        self._answers = AnswerService(self.live_answers)
        self.rollout = Rollout(planner, self.members, pipeline_manager, self.live_answers, on_event, draft_model)
        self._suspicions = Suspicions(pipeline_manager, on_event)
        self._work = ThreadWork(self.is_alive)
        self.changer = ModelChanger(
            planner, self.members, pipeline_manager, self.live_answers, on_event, self._work.do, make_parts
        )
        self._port = ClusterPort(identity, cluster, listen, on_event)
        self.trust_store, self._listener, self.address = self._port.trust_store, self._port.listener, self._port.address
        self._outbox: Mailbox[Outgoing] = Mailbox()
        store, members, live = self.trust_store, self.members, self.live_answers
        self._rates = Rates(pipeline_manager)
        self._sources = StatusSources(
            *(store, members, planner, self.rollout, pipeline_manager, live, self.changer, self._rates, on_event),
            address=self.address,
            began_s=time.monotonic(),
            sleep=sleep,
        )
        self._join_endpoint = JoinEndpoint(identity, self.address, lambda: store.cluster, self._on_paired, on_event)
        self._membership_service = MembershipService(
            members, identity, store, planner, self._send, on_event, self.rollout.drafts.task, lambda: len(live) > 0
        )
        self._drains = Drains(members, planner, self._has_moved, self._send, on_event)
        self._calls = self._new_calls(on_event)
        self._ticked_s = 0.0
        self._steps = GuardedSteps(on_event)
        self._notices = AskerNotices(live, self._answers, self._calls, self._wait_reason, self._send)
        self.inbox = Inbox(self._listener, self._send)
        self.dispatcher = self._new_dispatcher()
        self._dissolving, self._dissolved = False, threading.Event()
        self.error: BaseException | None = None
        """The unexpected error that ended the thread."""

    def _new_calls(self, on_event: RecentEvents) -> CallService:
        return CallService(
            self._identity,
            self.trust_store,
            self.members,
            self._answers,
            self._join_endpoint,
            self.status,
            self.changer,
            self._drains,
            self.rollout.sums.ask,
            self._send,
            on_event,
        )

    def _new_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.inbox,
            self.trust_store,
            self._membership_service,
            self.rollout,
            self._drains,
            self._calls,
            self._answers,
            self._steps,
            self._send,
            lambda asker, frames: self._outbox.put((asker, frames)),
            self._tick_at_once,
        )

    @property
    def local_address(self) -> Address:
        """The address under which this machine's own processes reach the coordinator."""
        return self._port.local_address

    @property
    def reason(self) -> str:
        """What answers wait for, such as machines that are away; empty while a pipeline is open."""
        return self._sources.reason

    def status(self) -> dict[str, Any]:
        """The cluster's state as `edgepp status --json` prints it."""
        return cluster_status(self._sources)

    def tell_http(self, http: HttpAddress | None) -> None:
        """Have the status tell where the HTTP server of this process listens; None for no server."""
        self._sources = replace(self._sources, http=http)

    def close(self) -> None:
        """End all answers and the thread; members search for a new coordinator."""
        self.changer.close()
        with suppress(OSError):  # the thread has ended already
            self._outbox.put(None)
        self.join()

    def dissolve(self) -> None:
        """Tell every member that the cluster ends, and wait until all have left, for ``DISSOLVE_S`` at most.

        A member that is not told would look for this coordinator for ever. Safe from any other thread.
        """
        self._dissolving = True
        self._dissolved.wait(DISSOLVE_S)

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
            self._dissolved.set()
            told = False
            with self._steps.surviving("telling the askers"):
                told = self._notices.decline_all(
                    EdgeppError(f"{self._identity.name} stopped serving", "start `edgepp serve` there, then ask again")
                )
            with self._steps.surviving("closing"):
                self._listener.close(_LAST_ANSWERS_S if told else 0.0)
            self._sleep.release()
            for part in (self._join_endpoint, self._port, self._outbox):
                with self._steps.surviving("closing"):
                    part.close()

    def _turn(self, poller: Poller[Outgoing]) -> bool:
        """Receive, send, handle, and do periodic work once; False when the coordinator is closed."""
        for reader in poller.wait(0.0 if self.inbox else TICK_S):
            if reader is self._listener:
                with self._steps.surviving("receiving messages"):  # such as too little memory, or no descriptor
                    self.inbox.receive()
                continue
            for outgoing in self._outbox.drain():
                if outgoing is None:
                    return False
                asker, frames = outgoing
                if asker not in self._calls.revoked_askers:
                    with self._steps.surviving("sending"):
                        self._send(asker[0], frames)
        self.dispatcher.handle_waiting()
        now_s = time.monotonic()
        if now_s - self._ticked_s >= TICK_S:
            self._tick(now_s)
        return True

    def _tick_at_once(self) -> None:
        self._ticked_s = 0.0  # answers may pause until the rollout goes on

    def _tick(self, now_s: float) -> None:
        """Do the periodic work of each service; an error in one does not keep the others from their work."""
        self._ticked_s = now_s
        self._work.run()
        self._sleep.update(working=len(self.live_answers) > 0)
        with self._steps.surviving("announcing"):
            self._join_endpoint.announce()
        with self._steps.surviving("checking the members"):
            if node := self.rollout.node_of_ended_stage:
                self._membership_service.stage_ended(node)
            self._membership_service.tick(now_s)
            self._suspicions.tick()
            self._rates.tick(now_s)
        with self._steps.surviving("planning"):
            if self._dissolving:
                self._expel_all()
            else:
                self.planner.expected_nodes = frozenset({*self.trust_store.nodes, *self._own_nodes})
                self._send_orders(self.rollout.step(now_s))
                self._drains.tick()
        with self._steps.surviving("publishing the view"):
            self._membership_service.publish()
        with self._steps.surviving("telling the askers"):
            self._notices.tick(now_s)

    def _expel_all(self) -> None:
        if self._membership_service.expel_all(f"{self._identity.name} ended the cluster"):
            self._dissolved.set()

    def _wait_reason(self) -> str:
        return self.reason or self._suspicions.reason

    def _send_orders(self, orders: Sequence[RolloutOrder]) -> None:
        for node, message in orders:
            member = self.members.get(node)
            if member is not None:
                self._send(member.route, [encode(message)])

    def _has_moved(self) -> bool:
        return self.pipeline_manager.runs_over(self.planner.plan_version)

    def _on_paired(self, node: PairedNode) -> None:
        """Admit a node that proved an invitation code. Called in a thread of the pairing server."""
        self.trust_store.pair(node)
        self.members.version += 1

    def _send(self, route: bytes, frames: Sequence[bytes]) -> bool:
        sent = self._listener.send(route, frames)
        if not sent:
            self._answers.cancel_all(route)
        return sent
