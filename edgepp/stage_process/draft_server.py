"""The loop of a drafting process: receives texts, lets the small model guess, and sends the guesses."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.drafting import Drafting
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Hello, Refused
from edgepp.wire.messages.drafts import Drafter, Forget, Read
from edgepp.wire.permissions import check_speaker
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Listener, Sender

log = logging.getLogger("edgepp.draft")

_MAX_MESSAGES_PER_TURN = 100
"""Messages that are handled before the model does a unit of work."""


def compute_in_background() -> None:
    """Let this thread, and those that it starts from now on, compute only while a core would be idle.

    On systems other than Linux that is so for the process.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


class DraftServer:
    """Serves one small model on one socket. Belongs to one thread; any thread may put None into ``inbox`` to end it."""

    def __init__(self, listener: Listener, drafting: Drafting, drafter: Drafter, driver: str = "") -> None:
        """``drafter`` replies to ``Hello``; ``driver`` is the only key that may send texts, empty for any key."""
        self._listener, self._drafting = listener, drafting
        self._drafter, self._driver = drafter, driver
        self._log_sampler = LogSampler()
        self.inbox: Mailbox[None] = Mailbox()

    def run(self) -> None:
        """Receive, guess and send until the inbox has something."""
        poller = Poller[None](self._listener, self.inbox)
        while True:
            for reader in poller.wait(0.0 if self._drafting.has_work else 60.0):
                if reader is not self._listener:
                    return
                self._receive()
            if self._drafting.has_work and (reply := self._drafting.work()) is not None:
                self._send(*reply)

    def close(self) -> None:
        """Release the sockets."""
        self._listener.close()
        self.inbox.close()

    def _receive(self) -> None:
        """Handle what waits; a message is dropped on any error."""
        for _ in range(_MAX_MESSAGES_PER_TURN):
            try:
                received = self._listener.receive()
                if received is None:
                    return
                self._handle(*received)
            except RemoteProtocolError as error:
                if self._log_sampler.should_log("message", str(error)[:40]):
                    log.warning("dropped a message: %s", error)
            except Exception as error:
                if self._log_sampler.should_log("draft", type(error).__name__):
                    log.exception("a message failed")

    def _handle(self, sender: Sender, frames: Sequence[memoryview]) -> None:
        try:
            if len(frames) != 1:
                raise RemoteProtocolError("a message of more than one frame")
            message = decode(frames[0])
            check_speaker(message, "draft", "driver" if self._driver in ("", sender.key) else "guest")
        except RemoteProtocolError as error:
            self._send(sender.route, Refused(sentence(error)))
            raise
        match message:
            case Hello():
                self._send(sender.route, self._drafter)
            case Read():
                if (reply := self._drafting.read(message, sender.route)) is not None:
                    self._send(*reply)
            case Forget():
                self._drafting.forget(message.sequence)

    def _send(self, route: bytes, message: Message) -> None:
        self._listener.send(route, [encode(message)])
