"""Compute thread of a stage: owns the model and the data socket; the thread that receives a frame also runs it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.attachment import Attachment, check_frame
from edgepp.stage_process.boundary_log import BoundaryLog
from edgepp.stage_process.bulk_link import BulkConnected
from edgepp.stage_process.bulk_work import BulkWork
from edgepp.stage_process.compute_status import ComputeStatus
from edgepp.stage_process.frame_sender import FrameSender
from edgepp.stage_process.model_runner import Frame, ModelRunner, sequences_of
from edgepp.stage_process.next_stage import NextStageLink, Reply
from edgepp.wire import codec
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.link_rate import PROBE_BYTES
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.control import Attach, Attached, Detach, Fault, FrameLost, Free
from edgepp.wire.messages.data import Batch, Echo, Forward, KvPiece
from edgepp.wire.messages.recovery import Expect, Inventory, Push, Rebuilt, Replay
from edgepp.wire.permissions import check_speaker
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Link, Listener, Sender

log = logging.getLogger("edgepp.stage")

AWAKE_S = 0.05
"""How long a stage waits for the next frame without sleeping, if ``ComputePolicy.awake`` is set."""
_RETRY_INTERVAL_S = 0.005
"""How often a next stage with a full queue is tried again."""
MAX_COPIES_BYTES = 1 << 30
"""Memory for copies that this stage keeps for another one, unless given."""

Order = NextStageLink | BulkConnected | Detach | Free | Inventory | Replay | Expect | Push
Command = Order | None
"""Order of the control thread to the compute thread; None means stop."""


_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


class ComputeThread:
    """Receives frames on the data socket, runs them, and sends the results on. All methods belong to one thread."""

    def __init__(
        self,
        runner: ModelRunner,
        data: Listener,
        *,
        awake: bool = False,
        max_copies_bytes: int = MAX_COPIES_BYTES,
    ) -> None:
        """``awake``: whether to wait for frames without sleeping; ``max_copies_bytes`` bounds copies for others."""
        self.runner = runner
        self._awake = awake
        self.data = data
        self.inbox: Mailbox[Command] = Mailbox()
        self.outbox: Mailbox[Reply] = Mailbox()
        self.status = ComputeStatus(runner, lambda: self.bulk.nbytes)
        data.traffic = self.status.traffic
        self._rings: dict[int, Attachment] = {}
        boundary_log = BoundaryLog()
        self._sender = FrameSender(data, self.status, boundary_log, self.outbox, self._report_unreachable)
        self.bulk = BulkWork(runner, self._sender, boundary_log, max_copies_bytes, self._fault, self._rebuilt)
        self._bulk_moved = False
        """Whether bulk data was sent in the last turn."""
        self._log_sampler = LogSampler()

    def run(self) -> None:
        """Handle frames and commands until the command None."""
        poller = Poller[Command](self.inbox, self.data)
        while True:
            for reader in self._wait(poller):
                if reader is self.data:
                    self.receive()
                else:
                    for command in self.inbox.drain():
                        if command is None:
                            return
                        self.execute(command)
            if self._sender.is_congested:
                self._sender.retry_unsent()
            self._bulk_moved = self._move_bulk()

    def _move_bulk(self) -> bool:
        """Send some bulk data between two frames; an unexpected error is logged."""
        try:
            return self.bulk.move(self._rings)
        except Exception as error:
            if self._log_sampler.should_log("bulk", type(error).__name__):
                log.exception("sending bulk data failed")
            return False

    def _wait(self, poller: Poller[Command]) -> list[Listener | Link | Mailbox[Command]]:
        """Wait for the next frame or command; for ``AWAKE_S`` without sleeping where sequences are open.

        A processor that slept while other stages computed takes up to a millisecond to reach full speed again.
        """
        if self._sender.is_congested:
            return poller.wait(_RETRY_INTERVAL_S)
        if (bulk_wait_s := self.bulk.wait_s) is not None:
            return poller.wait(0.0 if self._bulk_moved else bulk_wait_s)
        until_s = time.perf_counter() + (AWAKE_S if self._awake and self.runner.sequences else 0.0)
        while time.perf_counter() < until_s:
            if ready := poller.wait(0.0):
                return ready
            _yield()
        return poller.wait(60.0)

    def close(self) -> None:
        """Release sockets and KV caches."""
        for command in self.inbox.drain():
            if isinstance(command, NextStageLink | BulkConnected):
                self.execute(command)
        for epoch in list(self._rings):
            self._detach(epoch)
        for command in self.inbox.drain():
            if isinstance(command, BulkConnected):
                command.hand_over()
        self.data.close()

    def execute(self, command: Order) -> None:
        """Execute a command of the control thread; an unexpected error is logged."""
        try:
            match command:
                case NextStageLink():
                    self._attach(command)
                case Free():
                    self.runner.free(command.epoch, command.sequence)
                case Detach():
                    self._detach(command.epoch)
                case BulkConnected():
                    command.hand_over()
                case Inventory():
                    self._tell_inventory(command.epoch)
                case Replay() | Expect() | Push():
                    ring = self._rings.get(command.epoch)
                    if ring is not None:
                        self.bulk.order(ring, command)
        except Exception as error:
            if self._log_sampler.should_log("command", type(error).__name__):
                log.exception("a command failed")

    def _attach(self, next_stage: NextStageLink) -> None:
        attempt, link = next_stage.attempt, next_stage.link
        message = attempt.message
        if attempt.given_up:
            if link is not None:
                link.close()
            return
        self._detach(message.epoch)
        if link is not None:
            link.traffic = self.status.traffic
        if message.inherits:
            self._inherit(message)
        bytes_per_s = next_stage.bytes_per_s if link is not None else message.return_bytes_per_s
        choice = CodecChoice(message.codec, bytes_per_s)
        ring = self._rings[message.epoch] = Attachment(message, attempt.control, link, choice)
        self.bulk.attach(ring, bytes_per_s)
        self._tell_inventory(message.epoch)
        self.outbox.put(
            (attempt.control, Attached(message.epoch, int(next_stage.echo_s * 1e6), next_stage.bytes_per_s))
        )

    def _tell_inventory(self, epoch: int) -> None:
        if (ring := self._rings.get(epoch)) is not None:
            for held in self.bulk.held(epoch):
                self.outbox.put((ring.control, held))

    def _inherit(self, message: Attach) -> None:
        """Move the sequences of the epoch that the new ring replaces, whose frames are dropped from now on."""
        replaced = self._rings.pop(message.inherits, None)
        for _ in range(self._sender.forget(message.inherits)):
            self.status.drop("a frame of a ring that was replaced")
        self.bulk.detach(message.inherits)
        if replaced is not None:
            replaced.close()
        self.runner.inherit(message.inherits, message.epoch)

    def _detach(self, epoch: int) -> None:
        ring = self._rings.pop(epoch, None)
        self._sender.forget(epoch)
        self.bulk.detach(epoch)
        if ring is not None:
            ring.close()
        self.runner.forget(epoch)

    def receive(self) -> None:
        """Handle one message of the data socket; the message is dropped on any error."""
        try:
            received = self.data.receive()
            if received is not None:
                sender, (header, *tensor) = received
                self._handle(sender, header, tensor)
        except RemoteProtocolError as error:
            self.status.drop(error)
        except Exception as error:
            self.status.drop(error)
            if self._log_sampler.should_log("message", type(error).__name__):
                log.exception("a message failed")

    def _handle(self, sender: Sender, header: memoryview, tensor: list[memoryview]) -> None:
        message = decode(header)
        check_speaker(message, "data", "guest")
        if isinstance(message, Forward | Batch):
            self._run(sender.key, message, tensor)
        elif isinstance(message, KvPiece):
            self.bulk.receive(self._ring(message.epoch), sender.key, message, tensor)
        elif not isinstance(message, Echo) or message.reply or sum(map(len, tensor)) > PROBE_BYTES:
            raise RemoteProtocolError("an Echo that is a reply, or too long, or a message that a stage does not accept")
        else:
            self.data.send(sender.route, [encode(message._replace(reply=True)), *tensor])

    def _ring(self, epoch: int) -> Attachment:
        ring = self._rings.get(epoch)
        if ring is None:
            raise RemoteProtocolError(f"a message of the unknown epoch {epoch}")
        return ring

    def _run(self, key: str, frame: Frame, tensor: list[memoryview]) -> None:
        ring = self._ring(frame.epoch)
        if key != ring.message.previous_key:
            raise RemoteProtocolError("a frame of another sender than the previous stage")
        if ring.arrived(frame.serial):
            self._report_lost(ring)
        self.status.busy_since_s = time.perf_counter()
        try:
            check_frame(ring, frame, self.runner.model.hidden_size)
            codec.check(tensor, frame.checksum)
            hidden = codec.decode(tensor, frame.rows, frame.width, frame.dtype, frame.codec)
            outcome = self.runner.run(frame, hidden)
            for sequence, reason in outcome.faults:
                self._fault(ring, sequence, reason)
            if outcome.frame is not None:
                self._sender.send_result(ring, outcome.frame, outcome.hidden)
                self.bulk.computed(ring, outcome.frame)
        except RemoteProtocolError:
            self._report_lost(ring)
            raise
        except Exception as error:  # a boundary: the requests of the frame end, the stage goes on
            if self._log_sampler.should_log("step", type(error).__name__):
                log.exception("a step failed")
            for sequence in sequences_of(frame):
                self._fault(ring, sequence, f"{type(error).__name__}: {error}")
        finally:
            self.status.busy_since_s = None

    def _rebuilt(self, ring: Attachment, message: Rebuilt) -> None:
        self.outbox.put((ring.control, message))

    def _report_lost(self, ring: Attachment) -> None:
        self.outbox.put((ring.control, FrameLost(ring.message.epoch, ring.stage)))

    def _report_unreachable(self, ring: Attachment) -> None:
        """Report that the next stage takes no frames; the sequences stay, for the ring that replaces this one."""
        self.outbox.put((ring.control, FrameLost(ring.message.epoch, ring.stage + 1)))

    def _fault(self, ring: Attachment, sequence: int, reason: str) -> None:
        self.runner.free(ring.message.epoch, sequence)
        self.outbox.put((ring.control, Fault(ring.message.epoch, sequence, ring.stage, sentence(reason))))
