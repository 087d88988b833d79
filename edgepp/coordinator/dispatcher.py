"""Dispatch of the messages that the coordinator has received, each to the service that handles its kind.

A sender is identified by the key that its connection proved. A message that a service refuses is answered with the
reason; an unexpected error ends the handling of its message alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from edgepp.coordinator.answer_service import AnswerService, Asker, declined
from edgepp.coordinator.call_service import CallService
from edgepp.coordinator.guarded_steps import GuardedSteps
from edgepp.coordinator.inbox import Inbox
from edgepp.coordinator.membership_service import MembershipService
from edgepp.coordinator.node_draining import Drains
from edgepp.coordinator.rollout import Rollout
from edgepp.coordinator.trust_store import TrustStore
from edgepp.errors import EdgeppError
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.message_codec import decode_payload, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.clients import Ask, Call, Cancel, request_id_of
from edgepp.wire.messages.control import Refused
from edgepp.wire.messages.nodes import Adopt, Enrol, Heartbeat, Leave, Leaving, Loaded, Loading, NotLoaded
from edgepp.wire.messages.rank_meetings import RankListens, SumMeasured
from edgepp.wire.permissions import check_speaker
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Sender

log = logging.getLogger("edgepp.coordinator")

_MAX_HANDLING_S = 0.05
"""The time for handling messages before the thread looks at its sockets again."""


class Dispatcher:
    """Handles the messages of an inbox. Belongs to the coordinator's thread."""

    def __init__(
        self,
        inbox: Inbox,
        trust_store: TrustStore,
        membership: MembershipService,
        rollout: Rollout,
        drains: Drains,
        calls: CallService,
        answers: AnswerService,
        steps: GuardedSteps,
        send: Callable[[bytes, Sequence[bytes]], bool],
        send_later: Callable[[Asker, list[bytes]], None],
        on_stage_change: Callable[[], None],
    ) -> None:
        """Pass messages to the services.

        ``send`` takes a route and frames; ``send_later`` sends to an asker, from any thread; ``on_stage_change`` is
        called when a stage process was loaded, or has ended, or a rank listens.
        """
        self._inbox = inbox
        self._trust_store = trust_store
        self._membership = membership
        self._rollout = rollout
        self._drains = drains
        self._calls = calls
        self._answers = answers
        self._steps = steps
        self._send = send
        self._send_later = send_later
        self._on_stage_change = on_stage_change
        self._log_sampler = LogSampler()

    def handle_waiting(self) -> None:
        """Handle queued messages, one owner after the other, for at most ``_MAX_HANDLING_S`` seconds."""
        until_s = time.monotonic() + _MAX_HANDLING_S
        while self._inbox and time.monotonic() < until_s:
            sender, message, frames = self._inbox.take()
            request = request_id_of(message)
            with self._steps.surviving(f"a {type(message).__name__} message"):
                try:
                    self._dispatch(sender, message, frames)
                except EdgeppError as error:
                    if self._log_sampler.should_log(sender.host, type(message).__name__):
                        log.info("refused %s of %s: %s", type(message).__name__, sender.host, error)
                    refusal = [encode(Refused(sentence(error)))] if request is None else declined(request, error)
                    self._send(sender.route, refusal)
                except Exception as error:
                    if request is not None:
                        failure = EdgeppError(f"the coordinator failed: {type(error).__name__}: {error}")
                        self._send(sender.route, declined(request, failure))
                    raise

    def _dispatch(self, sender: Sender, message: Message, frames: Sequence[memoryview]) -> None:
        """Pass a message to the service that handles its kind.

        Raises:
            EdgeppError: the sender may not send the message, or the service refuses it.
        """
        if isinstance(message, Adopt):
            self._calls.adopt(sender, message)
            return
        node = self._trust_store.node_of(sender.key)
        check_speaker(message, "cluster", "member")
        match message:
            case Enrol():
                self._membership.enrol(node, sender, message)
            case Heartbeat():
                self._membership.heartbeat(node, sender, message)
            case Loading() | Loaded() | NotLoaded() | RankListens() | SumMeasured():
                self._rollout.report(node, message, time.monotonic())
                if not isinstance(message, Loading):
                    self._on_stage_change()
            case Leaving():
                self._drains.leaving(node, message)
            case Leave():
                self._membership.leave(node, message)
            case Call():
                self._calls.call(sender, message, decode_payload(frames))
            case Ask():
                asker = (sender.route, message.request_id)
                question = decode_payload(frames)
                self._answers.begin(asker, sender.key, question, lambda out: self._send_later(asker, out))
            case Cancel():
                self._answers.cancel((sender.route, message.request_id))
