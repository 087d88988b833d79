"""A stage's control thread: answers at once, whatever the compute thread does; forgets coordinators that are gone."""

from __future__ import annotations

import logging
import threading
import time

from edgepp.errors import RemoteProtocolError
from edgepp.node.compute import Compute, Reply
from edgepp.wire.mailbox import Poller
from edgepp.wire.messages import Attach, Detach, Free, Hello, Message, Ping, Refused, Welcome, decode, encode
from edgepp.wire.security import Gate
from edgepp.wire.transport import Listener

log = logging.getLogger("edgepp.stage")

SILENCE_S = 10.0
"""A coordinator that says nothing for so long is gone; its sequences are freed."""


class Control(threading.Thread):
    """The control thread: answers at once, whatever the compute thread does."""

    def __init__(self, listener: Listener, gate: Gate, compute: Compute, welcome: Welcome) -> None:
        super().__init__(name="control", daemon=True)
        self._listener = listener
        self._gate = gate
        self._compute = compute
        self._welcome = welcome
        self._heard: dict[int, float] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread and close its socket."""
        self._stopping.set()
        self.join()
        self._listener.close()

    def run(self) -> None:
        """Serve until stopped."""
        poller = Poller[Reply](self._listener, self._compute.outbox)
        while not self._stopping.is_set():
            for reader in poller.wait(0.2):
                if reader is self._listener:
                    self._receive()
                else:
                    for route, message in self._compute.outbox.drain():
                        self._listener.send(route, [encode(message)])
            self._forget_the_silent()

    def _receive(self) -> None:
        try:
            received = self._listener.receive_from()
            if received is None:
                return
            (route, key, host), frames = received
            if key and not self._gate.admits(key):
                raise RemoteProtocolError(f"a message of {host}, whose key was revoked")
        except RemoteProtocolError as error:
            self._compute.status.drop(error)
            return
        try:
            if len(frames) != 1:
                raise RemoteProtocolError("a control message with a tensor")
            self._answer(route, decode(frames[0]))
        except RemoteProtocolError as error:
            self._compute.status.drop(error)
            self._listener.send(route, [encode(Refused(str(error)[:500]))])

    def _answer(self, route: bytes, message: Message) -> None:
        match message:
            case Hello():
                self._listener.send(route, [encode(self._welcome)])
            case Ping():
                known = message.epoch in self._heard
                if known:
                    self._heard[message.epoch] = time.monotonic()
                self._listener.send(route, [encode(self._compute.status.pong(message.epoch, known=known))])
            case Attach():
                self._heard[message.epoch] = time.monotonic()
                self._compute.inbox.put((route, message))
            case Detach():
                self._heard.pop(message.epoch, None)
                self._compute.inbox.put((route, message))
            case Free():
                self._compute.inbox.put((route, message))
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} message on a control socket")

    def _forget_the_silent(self) -> None:
        limit = time.monotonic() - SILENCE_S
        for epoch in [epoch for epoch, heard in self._heard.items() if heard < limit]:
            log.warning("the coordinator of epoch %d went silent; its sequences are freed", epoch)
            del self._heard[epoch]
            self._compute.inbox.put((b"", Detach(epoch)))
