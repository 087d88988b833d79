"""Control thread of a stage: replies at once even during a step, and forgets coordinators that are silent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.compute_thread import ComputeThread
from edgepp.stage_process.next_stage import ConnectAttempt, NextStageConnector, Reply
from edgepp.wire.frame_marks import clock_us
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Attach, Attached, Detach, Free, Hello, Ping, Refused, Void, Welcome
from edgepp.wire.messages.recovery import Expect, Inventory, Push, Replay
from edgepp.wire.permissions import Role, check_speaker
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Listener, Sender

log = logging.getLogger("edgepp.stage")

EPOCH_TIMEOUT_S = 10.0
"""A coordinator that is silent for this long is gone; its epochs are forgotten."""
MAX_EPOCHS = 256
"""Rings that a stage is part of, of all owners."""
MAX_EPOCHS_PER_OWNER = 16
"""Rings of one key or, without encryption, of one host."""
_WINDOW_S = 0.05
_MAX_MESSAGES_PER_WINDOW = 100
"""Messages handled per window; more wait, so that a flood does not take the processor from the compute thread."""


@dataclass
class _Epoch:
    """A ring that this stage is part of, or is joining."""

    owner: str
    heard_s: float
    attempt: ConnectAttempt
    replaced: int = 0
    """Epoch that this one has replaced, whose sequences it has; 0 for none."""

    @property
    def inherits(self) -> int:
        """Epoch that this one replaces once the stage is attached; 0 for none."""
        return self.attempt.message.inherits


class ControlThread(threading.Thread):
    """Handles the control socket of a stage."""

    def __init__(
        self,
        listener: Listener,
        compute: ComputeThread,
        connector: NextStageConnector,
        welcome: Welcome,
        driver: str = "",
    ) -> None:
        """``welcome`` replies to ``Hello``; ``driver`` is the only key that may give orders, empty for any key."""
        super().__init__(name="control", daemon=True)
        self._listener = listener
        self._compute = compute
        self._connector = connector
        self._welcome = welcome
        self._driver = driver
        self._epochs: dict[int, _Epoch] = {}
        self._log_sampler = LogSampler()
        self._window_s = 0.0
        self._in_window = 0
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread and close its socket."""
        self._stopping.set()
        self.join()
        self._connector.close()
        self._listener.close()

    def run(self) -> None:
        """Handle messages until ``stop``."""
        poller = Poller[Reply](self._listener, self._compute.outbox)
        try:
            while not self._stopping.is_set():
                for reader in poller.wait(0.2):
                    if reader is self._listener:
                        self._limit_rate()
                        self.receive()
                    else:
                        for route, message in self._compute.outbox.drain():
                            self.reply(route, message)
                self._forget_silent_epochs()
        finally:
            self._compute.inbox.put(None)  # without a control thread, the stage process ends

    def reply(self, route: bytes, message: Message) -> None:
        """Send a message of the compute thread; an ``Attached`` ends the epoch that its ring has inherited."""
        epoch = self._epochs.get(message.epoch) if isinstance(message, Attached) else None
        inherited = self._epochs.pop(epoch.inherits, None) if epoch is not None and epoch.inherits else None
        if epoch is not None and inherited is not None:
            inherited.attempt.given_up, epoch.replaced = True, epoch.inherits
        self._send(route, message)

    def receive(self) -> None:
        """Handle one message; the message is dropped on any error."""
        try:
            received = self._listener.receive()
            if received is not None:
                self._take(*received)
        except RemoteProtocolError as error:
            self._compute.status.drop(error)
        except Exception as error:
            self._compute.status.drop(error)
            if self._log_sampler.should_log("control", type(error).__name__):
                log.exception("a control message failed")

    def _take(self, sender: Sender, frames: Sequence[memoryview]) -> None:
        try:
            if len(frames) != 1:
                raise RemoteProtocolError("a control message of more than one frame")
            message = decode(frames[0])
            check_speaker(message, "control", self._role(sender))
            self._answer(sender, message)
        except RemoteProtocolError as error:
            self._compute.status.drop(error)
            self._send(sender.route, Refused(sentence(error)))

    def _role(self, sender: Sender) -> Role:
        return "driver" if not sender.key or self._driver in ("", sender.key) else "guest"

    def _answer(self, sender: Sender, message: Message) -> None:
        match message:
            case Hello():
                self._send(sender.route, self._welcome)
            case Ping():
                received_us = clock_us()
                known = self._heard(sender, message.epoch)
                self._send(sender.route, self._compute.status.pong(message, received_us, known=known))
            case Attach():
                self._attach(sender, message)
            case Detach():
                self._check_owner(sender, message.epoch)
                self._forget(message.epoch)
            case Expect() | Push():
                self._check_owner(sender, message.epoch)
                self._check_key("the other stage's key", message.key, sender)
                self._compute.inbox.put(message)
            case Void():
                self._check_owner(sender, message.epoch)
                self._compute.running.void(message)
            case Free() | Replay() | Inventory():
                self._check_owner(sender, message.epoch)
                self._compute.inbox.put(message)
                if isinstance(message, Free):
                    self._compute.running.leave(message.epoch, message.sequence)

    def _heard(self, sender: Sender, number: int) -> bool:
        """Note a ping for an epoch; whether the stage has its sequences, also those that a newer ring has inherited.

        The coordinator pings the former ring until the newer one has been joined by all stages.
        """
        owner, epoch = _owner(sender), self._epochs.get(number)
        if epoch is None:
            return number > 0 and (owner, number) in [(one.owner, one.replaced) for one in self._epochs.values()]
        if epoch.owner != owner:
            return False
        epoch.heard_s = time.monotonic()
        return True

    def _attach(self, sender: Sender, message: Attach) -> None:
        self._check_owner(sender, message.epoch)
        if message.inherits:
            self._check_owner(sender, message.inherits)
        self._check_key("the previous stage's key", message.previous_key, sender)
        if message.keeper_addresses:
            self._check_key("the key of the keeper of copies", message.keeper_key, sender)
        if message.keeps_copies:
            self._check_key("the key of the sender of copies", message.copies_from, sender)
        others = [one for epoch, one in self._epochs.items() if epoch not in (message.epoch, message.inherits or None)]
        owner = _owner(sender)
        if len(others) >= MAX_EPOCHS or sum(one.owner == owner for one in others) >= MAX_EPOCHS_PER_OWNER:
            raise RemoteProtocolError("this stage is part of too many rings already")
        if message.epoch in self._epochs:
            self._forget(message.epoch)
        attempt = ConnectAttempt(sender.route, message)
        self._connector.begin(attempt)
        self._epochs[message.epoch] = _Epoch(owner, time.monotonic(), attempt)

    def _check_key(self, what: str, key: str, sender: Sender) -> None:
        """Check that a key of a link is given exactly where this stage is encrypted, as its ``sender`` shows."""
        if bool(key) != bool(sender.key):
            encrypted = "encrypted" if sender.key else "not encrypted"
            raise RemoteProtocolError(f"{what} does not fit this stage, which is {encrypted}")

    def _check_owner(self, sender: Sender, number: int) -> None:
        epoch = self._epochs.get(number)
        if epoch is not None and epoch.owner != _owner(sender):
            raise RemoteProtocolError(f"epoch {number} belongs to another coordinator")

    def _forget(self, number: int) -> None:
        epoch = self._epochs.pop(number, None)
        if epoch is not None:
            epoch.attempt.given_up = True
        self._compute.inbox.put(Detach(number))
        self._compute.running.leave(number)

    def _forget_silent_epochs(self) -> None:
        oldest_s = time.monotonic() - EPOCH_TIMEOUT_S
        for number in [number for number, epoch in self._epochs.items() if epoch.heard_s < oldest_s]:
            log.warning("the coordinator of epoch %d is silent; the sequences of the epoch are freed", number)
            self._forget(number)

    def _send(self, route: bytes, message: Message) -> None:
        self._listener.send(route, [encode(message)])

    def _limit_rate(self) -> None:
        """Wait for the next window after ``_MAX_MESSAGES_PER_WINDOW`` messages.

        libzmq takes the connections in turn, so a flood on one connection delays the pings of others and loses none.
        """
        now_s = time.monotonic()
        if now_s - self._window_s >= _WINDOW_S:
            self._window_s, self._in_window = now_s, 0
        self._in_window += 1
        if self._in_window > _MAX_MESSAGES_PER_WINDOW:
            self._stopping.wait(self._window_s + _WINDOW_S - now_s)


def _owner(sender: Sender) -> str:
    """Owner of the epochs that the sender attaches: its key, or its host without encryption."""
    return sender.key or sender.host
