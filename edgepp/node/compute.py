"""A stage's compute thread: owns the model and the data socket, so the thread that receives a frame also runs it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from edgepp.errors import EdgeppError, RemoteProtocolError
from edgepp.model.checkpoint import Array
from edgepp.node.worker import Answer, Frame, Worker, answer_to, sequences_of
from edgepp.wire import codec
from edgepp.wire.choice import CodecChoice
from edgepp.wire.echo import PROBE_BYTES, link_rate, measure_echo
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.messages import (
    Attach,
    Attached,
    Batch,
    Detach,
    Echo,
    Fault,
    Forward,
    Free,
    Message,
    Pong,
    Refused,
    data_frame_bytes,
    decode,
    encode,
)
from edgepp.wire.reach import reach
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.transport import Address, Link, Listener

log = logging.getLogger("edgepp.stage")

AWAKE_S = 0.05
"""How long a stage waits for the next frame without sleeping, where that was asked for."""
_ECHO_WAIT_S = 3.0
_SEND_WAIT_S = 1.0
_LINK_FRAME_BYTES = 1 << 20  # only echoes come back on a link to the next stage

Command = tuple[bytes, Attach | Detach | Free] | None
"""What the control thread hands over, with the route of whoever asked; None means stop."""
Reply = tuple[bytes, Message]
"""What the control thread is to send, and to whom."""


_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


@dataclass
class Ring:
    """One coordinator's pipeline, as a stage of it sees it."""

    stage: int
    control: bytes
    next: Link | None
    route: bytes
    codec: CodecChoice


class Status:
    """What the control thread may read while the compute thread works."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.busy_since: float | None = None

    def pong(self, epoch: int, *, known: bool) -> Pong:
        """The present state as a ``Pong``."""
        since = self.busy_since
        busy_us = 0 if since is None else max(1, int((time.perf_counter() - since) * 1e6))
        worker = self._worker
        return Pong(
            epoch,
            known,
            busy_us,
            worker.counters.frames,
            worker.counters.dropped,
            worker.sequences,
            worker.model.kv_bytes,
        )

    def drop(self, reason: object) -> None:
        """Count a dropped frame; log the 1st, 10th, 100th … so that a flood cannot fill a disk."""
        count = self._worker.counters.dropped = self._worker.counters.dropped + 1
        if str(count).strip("0") == "1":
            log.warning("dropped frame %d: %s", count, reason)


class Compute:
    """The compute thread: takes frames off the data socket, runs them, sends them on."""

    def __init__(
        self,
        worker: Worker,
        data: Listener,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        awake: bool = False,
        keys: KeyPair | None = None,
    ) -> None:
        self.worker = worker
        self._keys = keys
        self._awake = awake
        self.data = data
        self.context = context
        self.inbox: Mailbox[Command] = Mailbox()
        self.outbox: Mailbox[Reply] = Mailbox()
        self.status = Status(worker)
        self._rings: dict[int, Ring] = {}

    def run(self) -> None:
        """Serve until told to stop."""
        poller = Poller[Command](self.inbox, self.data)
        while True:
            for reader in self._wait(poller):
                if reader is self.data:
                    self._receive()
                else:
                    for command in self.inbox.drain():
                        if command is None:
                            return
                        self._obey(*command)

    def _wait(self, poller: Poller[Command]) -> list[Listener | Link | Mailbox[Command]]:
        """Wait for the next frame or command, awake for a moment where sequences are open.

        A processor that slept through the other stages' part of a token takes up to a millisecond to be fast again.
        """
        until_s = time.perf_counter() + (AWAKE_S if self._awake and self.worker.sequences else 0.0)
        while time.perf_counter() < until_s:
            if ready := poller.wait(0.0):
                return ready
            _yield()
        return poller.wait(60.0)

    def close(self) -> None:
        """Release sockets and caches."""
        for epoch in list(self._rings):
            self._detach(epoch)
        self.data.close()

    def _obey(self, route: bytes, message: Attach | Detach | Free) -> None:
        match message:
            case Attach():
                self.outbox.put((route, self._attach(route, message)))
            case Free():
                self.worker.free(message.epoch, message.sequence)
            case Detach():
                self._detach(message.epoch)

    def _attach(self, route: bytes, message: Attach) -> Attached | Refused:
        self._detach(message.epoch)
        link, echo_s, bytes_s = None, 0.0, 0.0
        if message.next_addresses:
            try:
                link = self._reach(message)
            except EdgeppError as error:
                return Refused(f"it cannot reach the next stage: {error}"[:500])
            measured = measure_echo(link, self._hidden_bytes(1), _ECHO_WAIT_S)
            probe = min(PROBE_BYTES, data_frame_bytes(self.worker.model.hidden_size))
            large = measure_echo(link, probe, _ECHO_WAIT_S, rounds=2)
            if measured is None or large is None:
                link.close()
                return Refused(f"it cannot reach the next stage at {link.address}")
            echo_s, bytes_s = measured, link_rate(measured, large, probe)
        choice = CodecChoice(message.codec, bytes_s if link is not None else message.return_bytes_s)
        self._rings[message.epoch] = Ring(message.stage, route, link, bytes.fromhex(message.route), choice)
        return Attached(message.epoch, int(echo_s * 1e6), int(bytes_s))

    def _reach(self, message: Attach) -> Link:
        addresses = [Address.parse(address) for address in message.next_addresses.split(",")]
        protection = pinned(self._keys, message.next_key)
        hello = Echo(0, reply=False)
        link, _ = reach(self.context, addresses, hello, _ECHO_WAIT_S, _LINK_FRAME_BYTES, protection)
        return link

    def _hidden_bytes(self, tokens: int) -> int:
        return tokens * self.worker.model.hidden_size * codec.DTYPES[self.worker.model.dtype].itemsize

    def _detach(self, epoch: int) -> None:
        ring = self._rings.pop(epoch, None)
        if ring is not None and ring.next is not None:
            ring.next.close()
        self.worker.forget(epoch)

    def _receive(self) -> None:
        try:
            received = self.data.receive()
            if received is None:
                return
            route, (header, *tensor) = received
            message = decode(header)
            if isinstance(message, Forward | Batch):
                self._run(message, tensor)
            elif isinstance(message, Echo) and not message.reply:
                self.data.send(route, [encode(message._replace(reply=True)), *tensor])
            else:
                raise RemoteProtocolError(f"a {type(message).__name__} message on a data socket")
        except RemoteProtocolError as error:
            self.status.drop(error)

    def _run(self, frame: Frame, tensor: list[memoryview]) -> None:
        ring = self._rings.get(frame.epoch)
        if ring is None:
            raise RemoteProtocolError(f"a frame of the unknown epoch {frame.epoch}")
        if frame.width != self.worker.model.hidden_size or not frame.rows:
            raise RemoteProtocolError(f"a frame of shape ({frame.rows}, {frame.width})")
        if isinstance(frame, Forward) and frame.want > frame.rows:
            raise RemoteProtocolError(f"a frame of {frame.rows} rows of which {frame.want} are wanted")
        if isinstance(frame, Batch) and not len(frame.sequences) == len(frame.positions) == len(set(frame.sequences)):
            raise RemoteProtocolError("a batch whose sequences and positions do not match")
        hidden = codec.decode(tensor, frame.rows, frame.width, frame.dtype, frame.codec)
        self.status.busy_since = time.perf_counter()
        try:
            outcome = self.worker.run(frame, hidden)
            for sequence, reason in outcome.faults:
                self._fault(ring, frame.epoch, sequence, reason)
            if outcome.frame is not None:
                self._send(ring, outcome.frame, outcome.hidden)
        except Exception as error:  # the stage loop is a boundary: the node lives on, the requests end
            log.exception("step failed")
            for sequence in sequences_of(frame):
                self._fault(ring, frame.epoch, sequence, f"{type(error).__name__}: {error}")
        finally:
            self.status.busy_since = None

    def _send(self, ring: Ring, frame: Frame, hidden: Array) -> None:
        header: Frame | Answer = frame
        if ring.next is None:
            header, hidden = answer_to(frame, hidden)
        name, tensor = ring.codec.encode(hidden)
        parts = [encode(header if header.codec == name else header._replace(codec=name)), *tensor]
        if ring.next is None:
            if not self.data.send(ring.route, parts):
                self.status.drop("the coordinator is gone")
        elif not ring.next.send(parts, _SEND_WAIT_S):
            for sequence in sequences_of(frame):
                reason = "the stage before it cannot reach it any more"
                self._fault(ring, frame.epoch, sequence, reason, ring.stage + 1)

    def _fault(self, ring: Ring, epoch: int, sequence: int, reason: str, stage: int | None = None) -> None:
        culprit = ring.stage if stage is None else stage
        self.worker.free(epoch, sequence)
        self.outbox.put((ring.control, Fault(epoch, sequence, culprit, reason[:500])))
