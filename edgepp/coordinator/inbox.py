"""Messages that a coordinator has received and not handled yet, with fair turns between their owners."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edgepp.coordinator.answer_service import declined
from edgepp.coordinator.fair_shares import FairQueue
from edgepp.errors import EdgeppError, RemoteProtocolError
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_PAYLOAD_BYTES, Message
from edgepp.wire.messages.clients import request_id_of
from edgepp.wire.messages.control import Refused
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Listener, Sender

log = logging.getLogger("edgepp.coordinator")

_MAX_WAITING_MESSAGES = 256
"""Messages of one owner that wait to be handled; further ones are declined."""
_MAX_WAITING_BYTES = 4 * MAX_PAYLOAD_BYTES
"""Bytes of one owner's messages that wait to be handled."""
_MAX_RECEIVED_PER_TURN = 512

Received = tuple[Sender, Message, Sequence[memoryview]]
"""A message with its sender and all of its frames."""


class Inbox:
    """Decodes messages, declines those of an owner that sends too many, and gives them out in turns between owners."""

    def __init__(self, listener: Listener, send: Callable[[bytes, Sequence[bytes]], bool]) -> None:
        """``send`` takes a route and frames, for answers to messages that are not queued."""
        self._listener = listener
        self._send = send
        self._queue: FairQueue[Received] = FairQueue(_MAX_WAITING_MESSAGES, _MAX_WAITING_BYTES)
        self._log_sampler = LogSampler()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def receive(self) -> None:
        """Take messages off the socket and queue them, until there are no more or ``_MAX_RECEIVED_PER_TURN`` came."""
        for _ in range(_MAX_RECEIVED_PER_TURN):
            try:
                received = self._listener.receive_even_revoked()
            except RemoteProtocolError as error:
                if self._log_sampler.should_log("frame", type(error).__name__):
                    log.warning("dropped a frame: %s", error)
                continue
            if received is None:
                return
            self.put(*received)

    def put(self, sender: Sender, frames: Sequence[memoryview]) -> None:
        """Queue one message, or tell its sender that the message is malformed or one too many."""
        try:
            message = decode(frames[0])
        except RemoteProtocolError as error:
            if self._log_sampler.should_log(sender.host, "frame"):
                log.warning("refused a frame of %s: %s", sender.host, error)
            self._send(sender.route, [encode(Refused(sentence(error)))])
            return
        if self._queue.add(sender.key, (sender, message, frames), sum(frame.nbytes for frame in frames)):
            return
        request = request_id_of(message)
        if request is not None:
            busy = EdgeppError(
                f"{_MAX_WAITING_MESSAGES} messages of this machine are waiting already", "send them more slowly"
            )
            self._send(sender.route, declined(request, busy))

    def take(self) -> Received:
        """Remove and return the next message of the owner whose turn it is. The inbox must not be empty."""
        return self._queue.take()
