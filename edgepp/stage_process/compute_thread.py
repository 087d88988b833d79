"""Compute thread of a stage: owns the model and the data socket; the thread that receives a frame also runs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgepp.errors import RemoteProtocolError
from edgepp.stage_process.attachment import Attachment, check_frame
from edgepp.stage_process.boundary_log import BoundaryLog
from edgepp.stage_process.bulk_link import BulkConnected
from edgepp.stage_process.bulk_work import BulkWork
from edgepp.stage_process.compute_status import ComputeStatus
from edgepp.stage_process.frame_sender import FrameSender
from edgepp.stage_process.frames import Frame, sequences_of
from edgepp.stage_process.message_queue import MAX_MESSAGES, MessageQueue, WaitingFrame, WaitingMessage
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.next_stage import NextStageLink, Reply
from edgepp.stage_process.request_names import RequestNames
from edgepp.stage_process.rings import Rings
from edgepp.stage_process.running_frame import RunningFrame
from edgepp.wire import codec
from edgepp.wire.frame_marks import clock_us
from edgepp.wire.link_rate import PROBE_BYTES
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller, wait_awake
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.control import Detach, Fault, FrameLost, Free
from edgepp.wire.messages.data import Batch, Echo, Forward, Kept, KvPiece
from edgepp.wire.messages.recovery import Expect, Inventory, Push, Rebuilt, Replay
from edgepp.wire.permissions import check_speaker
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Listener, Sender

log = logging.getLogger("edgepp.stage")

_WATCH_INTERVAL_S = 0.5
_RETRY_INTERVAL_S = 0.005
"""How often a next stage with a full queue is tried again."""
MAX_COPIES_BYTES = 1 << 30
"""Memory for copies that this stage keeps for another one, unless given."""

Order = NextStageLink | BulkConnected | Detach | Free | Inventory | Replay | Expect | Push
Command = Order | None
"""Order of the control thread to the compute thread; None means stop."""


class ComputeThread:
    """Receives frames on the data socket, runs them, and sends the results on. All methods belong to one thread."""

    def __init__(
        self,
        runner: ModelRunner,
        data: Listener,
        *,
        awake: bool = False,
        max_copies_bytes: int = MAX_COPIES_BYTES,
        watch: Callable[[], None] | None = None,
    ) -> None:
        """``awake``: whether to wait for frames without sleeping; ``max_copies_bytes`` bounds copies for others.

        ``watch`` is called every half second while no frame comes.
        """
        self._watch = watch
        self.runner = runner
        self.running = RunningFrame(runner.model.interruption)
        self._awake = awake
        self.data = data
        self.inbox: Mailbox[Command] = Mailbox()
        self.outbox: Mailbox[Reply] = Mailbox()
        self.status = ComputeStatus(runner, lambda: self.bulk.nbytes)
        data.traffic = self.status.traffic
        boundary_log = BoundaryLog()
        self._sender = FrameSender(data, self.status, boundary_log, self.outbox, self._report_unreachable)
        self._names = RequestNames(runner)
        self.bulk = BulkWork(runner, self._sender, boundary_log, max_copies_bytes, self._fault, self._rebuilt)
        self._rings = Rings(runner, self._sender, self.bulk, self.status, self.outbox)
        self._queue = MessageQueue()
        self._bulk_moved = False
        """Whether bulk data was sent in the last turn."""
        self._log_sampler = LogSampler()

    def run(self) -> None:
        """Handle frames and commands until the command None."""
        poller = Poller[Command](self.inbox, self.data)
        while True:
            self._wait(poller)
            for command in self.inbox.drain():
                if command is None:
                    return
                self.execute(command)
            self.receive()
            if self._sender.is_congested:
                self._sender.retry_unsent()
            self._bulk_moved = self._move_bulk()

    def _move_bulk(self) -> bool:
        """Send some bulk data between two frames; an unexpected error is logged."""
        try:
            return self.bulk.move(self._rings.by_epoch)
        except Exception as error:
            if self._log_sampler.should_log("bulk", type(error).__name__):
                log.exception("sending bulk data failed")
            return False

    def _wait(self, poller: Poller[Command]) -> None:
        """Wait for the next message or command; at first without sleeping, where sequences are open."""
        if self._queue:
            return
        if self._sender.is_congested:
            poller.wait(_RETRY_INTERVAL_S)
        elif (bulk_wait_s := self.bulk.wait_s) is not None:
            poller.wait(0.0 if self._bulk_moved else bulk_wait_s)
        elif not (self._awake and self.runner.sequences and wait_awake(self._has_come)):
            poller.wait(60.0 if self._watch is None else _WATCH_INTERVAL_S)
            if self._watch is not None:
                self._watch()

    def _has_come(self) -> bool:
        """Whether there are commands or messages to handle."""
        return self.inbox.has_items or self._attempt(self._take_in)

    def close(self) -> None:
        """Release sockets and KV caches."""
        for command in self.inbox.drain():
            if isinstance(command, NextStageLink | BulkConnected):
                self.execute(command)
        self._rings.close()
        for command in self.inbox.drain():
            if isinstance(command, BulkConnected):
                command.hand_over()
        self.data.close()

    def execute(self, command: Order) -> None:
        """Execute a command of the control thread; an unexpected error is logged."""
        try:
            match command:
                case NextStageLink():
                    self._rings.attach(command)
                case Free():
                    self.runner.free(command.epoch, command.sequence)
                case Detach():
                    self._rings.detach(command.epoch)
                case BulkConnected():
                    if command.link is not None:
                        command.link.traffic = self.status.bulk_traffic
                    command.hand_over()
                case Inventory():
                    self._rings.tell_inventory(command.epoch)
                case Replay() | Expect() | Push():
                    if (ring := self._rings.by_epoch.get(command.epoch)) is not None:
                        self.bulk.order(ring, command)
        except Exception as error:
            if self._log_sampler.should_log("command", type(error).__name__):
                log.exception("a command failed")

    def receive(self) -> None:
        """Receive what has arrived, as far as there is room, and handle the oldest message that was not handled yet.

        A message is dropped on any error.
        """
        for _ in range(MAX_MESSAGES):
            if not self._queue.has_room or not self._attempt(self._take_in):
                break
        if self._queue:
            self._attempt(self._handle_oldest)

    def _attempt(self, work: Callable[[], bool]) -> bool:
        """Result of ``work``; True where it fails, which drops the message at hand."""
        try:
            return work()
        except RemoteProtocolError as error:
            self.status.drop(error)
        except Exception as error:
            self.status.drop(error)
            if self._log_sampler.should_log("message", type(error).__name__):
                log.exception("a message failed")
        return True

    def _take_in(self) -> bool:
        """Check the next message of the data socket, and queue it; False where none waits."""
        if (received := self.data.receive()) is None:
            return False
        received_us = clock_us()
        sender, (header, *parts) = received
        message = decode(header)
        check_speaker(message, "data", "guest")
        if isinstance(message, Forward | Batch):
            self._queue.put(self._checked(sender, message, parts, received_us))
        elif isinstance(message, KvPiece | Kept):
            self._queue.put(WaitingMessage(sender, message, parts))
        elif not isinstance(message, Echo) or message.reply or sum(map(len, parts)) > PROBE_BYTES:
            raise RemoteProtocolError("an Echo that is a reply, or too long, or a message that a stage does not accept")
        else:
            self._queue.put(WaitingMessage(sender, message, parts))
        return True

    def _checked(self, sender: Sender, frame: Frame, tensor: list[memoryview], received_us: int) -> WaitingFrame:
        ring = self._rings[frame.epoch]
        if sender.key != ring.message.previous_key:
            raise RemoteProtocolError("a frame of another sender than the previous stage")
        if ring.arrivals.arrived(frame.serial):
            self._report_lost(ring)
        try:
            check_frame(ring, frame, self.runner.model.hidden_size, has_head=self.runner.has_head)
            codec.check(tensor, frame.checksum)
            hidden = codec.decode(tensor, frame.rows, frame.width, frame.dtype, frame.codec)
        except Exception:
            self._report_lost(ring)
            raise
        return WaitingFrame(ring, frame, hidden, received_us, clock_us() if frame.trace else 0)

    def _handle_oldest(self) -> bool:
        match self._queue.take():
            case WaitingMessage(sender, Echo() as echo, parts):
                self.data.send(sender.route, [encode(echo._replace(reply=True)), *parts])
            case WaitingMessage(sender, KvPiece() as piece, parts):
                self.bulk.receive(self._rings[piece.epoch], sender.key, piece, parts)
            case WaitingMessage(sender, Kept() as kept, _):
                self.data.send(sender.route, [encode(self.bulk.kept(self._rings[kept.epoch], sender.key, kept))])
            case WaitingFrame(ring=ring, frame=frame) if self._rings[frame.epoch] is not ring:
                raise RemoteProtocolError("a frame of a ring that was replaced")
            case WaitingFrame(frame=frame) as waiting:
                if self._queue.voids(frame) or not self.running.begin(frame):
                    self.runner.counters.void += 1
                else:
                    self._run(waiting)
        return True

    def _run(self, waiting: WaitingFrame) -> None:
        ring, frame = waiting.ring, waiting.frame
        self._names.note(frame)
        self.status.busy_since_s = time.perf_counter()
        try:
            outcome = self.runner.run(frame, waiting.hidden)
            for sequence, reason in outcome.faults:
                self._fault(ring, sequence, reason)
            if outcome.frame is not None:
                if frame.trace:
                    outcome.frame = waiting.marked(outcome.frame, self.status.busy_since_s, self.runner.rank_times)
                self._sender.send_result(ring, outcome.frame, outcome.hidden)
                self.bulk.computed(ring, outcome.frame)
        except Exception as error:  # a boundary: the requests of the frame end, the stage goes on
            if self._log_sampler.should_log("step", type(error).__name__):
                log.exception("a step failed")
            for sequence in sequences_of(frame):
                self._fault(ring, sequence, f"{type(error).__name__}: {error}")
        finally:
            self.status.busy_since_s = None
            self.running.end()

    def _rebuilt(self, ring: Attachment, message: Rebuilt) -> None:
        self.outbox.put((ring.control, message))

    def _report_lost(self, ring: Attachment) -> None:
        self.outbox.put((ring.control, FrameLost(ring.message.epoch, ring.stage)))

    def _report_unreachable(self, ring: Attachment) -> None:
        """Report that the next stage takes no frames; the sequences stay, for the ring that replaces this one."""
        self.outbox.put((ring.control, FrameLost(ring.message.epoch, ring.stage + 1)))

    def _fault(self, ring: Attachment, sequence: int, reason: str) -> None:
        self._names.failed((ring.message.epoch, sequence), reason)
        self.runner.free(ring.message.epoch, sequence)
        self.outbox.put((ring.control, Fault(ring.message.epoch, sequence, ring.stage, sentence(reason))))
