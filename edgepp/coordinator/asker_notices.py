"""Notices to askers: why an answer has not begun, and that the coordinator stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgepp.coordinator.answer_service import AnswerService, declined
from edgepp.coordinator.call_service import CallService
from edgepp.coordinator.live_answers import LiveAnswers
from edgepp.errors import EdgeppError
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.clients import Waiting
from edgepp.wire.text_fields import sentence

_WAITING_MESSAGE_S = 1.0
"""The time between two ``Waiting`` messages to an asker."""


class AskerNotices:
    """Sends notices to all askers whose node is not revoked. Belongs to the coordinator's thread."""

    def __init__(
        self,
        live_answers: LiveAnswers,
        answers: AnswerService,
        calls: CallService,
        reason: Callable[[], str],
        send: Callable[[bytes, Sequence[bytes]], bool],
    ) -> None:
        """``reason`` tells what answers wait for; ``send`` takes a route and frames."""
        self._live_answers = live_answers
        self._answers = answers
        self._calls = calls
        self._reason = reason
        self._send = send
        self._sent_s = 0.0

    def tick(self, now_s: float) -> None:
        """Tell the askers what they wait for, once per ``_WAITING_MESSAGE_S``."""
        if now_s - self._sent_s < _WAITING_MESSAGE_S:
            return
        self._sent_s = now_s
        askers = self._answers.askers
        self._calls.revoked_askers.intersection_update(askers)
        reason = sentence(self._reason()) if askers else ""
        for asker in askers:
            if asker not in self._calls.revoked_askers:
                self._send(asker[0], [encode(Waiting(asker[1], reason))])

    def decline_all(self, error: EdgeppError) -> bool:
        """Stop every answer, of this process too, and tell the askers why; True where there was one."""
        askers = self._answers.askers
        self._live_answers.cancel_all()
        for asker in askers:
            if asker not in self._calls.revoked_askers:
                self._send(asker[0], declined(asker[1], error))
        return bool(askers)
