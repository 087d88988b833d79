"""Compute thread of a stage: owns the model and the data socket; the thread that receives a frame also runs it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator

from edgepp.errors import RemoteProtocolError, StageFault
from edgepp.stage_process.attachment import Attachment, check_frame
from edgepp.stage_process.boundary_log import BoundaryLog
from edgepp.stage_process.compute_status import ComputeStatus
from edgepp.stage_process.frame_sender import FrameSender
from edgepp.stage_process.held import held_messages
from edgepp.stage_process.model_runner import Frame, ModelRunner, sequences_of
from edgepp.stage_process.next_stage import NextStageLink, Reply
from edgepp.stage_process.paced_link import PacedLink
from edgepp.stage_process.replays import Replays
from edgepp.wire import codec
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.link_rate import PROBE_BYTES
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Attach, Attached, Batch, Detach, Echo, Fault, Forward, FrameLost, Free, Held, Replay
from edgepp.wire.permissions import check_speaker
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Link, Listener, Sender

log = logging.getLogger("edgepp.stage")

AWAKE_S = 0.05
"""How long a stage waits for the next frame without sleeping, if ``ComputePolicy.awake`` is set."""
_RETRY_INTERVAL_S = 0.005
"""How often a next stage with a full queue is tried again."""
_BULK_INTERVAL_S = 0.001
"""How often bulk data looks for room on its link."""

Command = NextStageLink | Detach | Free | Replay | None
"""Order of the control thread to the compute thread; None means stop."""


_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


class ComputeThread:
    """Receives frames on the data socket, runs them, and sends the results on. All methods belong to one thread."""

    def __init__(self, runner: ModelRunner, data: Listener, *, awake: bool = False) -> None:
        self.runner = runner
        self._awake = awake
        self.data = data
        self.inbox: Mailbox[Command] = Mailbox()
        self.outbox: Mailbox[Reply] = Mailbox()
        self.status = ComputeStatus(runner)
        data.traffic = self.status.traffic
        self._boundary_log = BoundaryLog()
        runner.companions.append(self._boundary_log)
        self._rings: dict[int, Attachment] = {}
        self._sender = FrameSender(data, self.status, self._boundary_log, self.outbox, self._fault_unreachable)
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

    def _wait(self, poller: Poller[Command]) -> list[Listener | Link | Mailbox[Command]]:
        """Wait for the next frame or command; for ``AWAKE_S`` without sleeping where sequences are open.

        A processor that slept while other stages computed takes up to a millisecond to reach full speed again.
        """
        if self._sender.is_congested:
            return poller.wait(_RETRY_INTERVAL_S)
        if any(ring.replays for ring in self._rings.values()):
            return poller.wait(0.0 if self._bulk_moved else _BULK_INTERVAL_S)
        until_s = time.perf_counter() + (AWAKE_S if self._awake and self.runner.sequences else 0.0)
        while time.perf_counter() < until_s:
            if ready := poller.wait(0.0):
                return ready
            _yield()
        return poller.wait(60.0)

    def close(self) -> None:
        """Release sockets and KV caches."""
        for command in self.inbox.drain():
            if isinstance(command, NextStageLink):
                self.execute(command)
        for epoch in list(self._rings):
            self._detach(epoch)
        self.data.close()

    def execute(self, command: NextStageLink | Detach | Free | Replay) -> None:
        """Execute a command of the control thread; an unexpected error is logged."""
        try:
            match command:
                case NextStageLink():
                    self._attach(command)
                case Free():
                    self.runner.free(command.epoch, command.sequence)
                case Detach():
                    self._detach(command.epoch)
                case Replay():
                    self._replay(command)
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
        choice = CodecChoice(message.codec, next_stage.bytes_per_s if link is not None else message.return_bytes_per_s)
        ring = self._rings[message.epoch] = Attachment(message, attempt.control, link, choice)
        if link is not None:
            ring.pace, ring.replays = PacedLink(link), Replays(self._boundary_log, self.runner.model.chunk)
        for held in self._held(message.epoch):
            self.outbox.put((attempt.control, held))
        self.outbox.put(
            (attempt.control, Attached(message.epoch, int(next_stage.echo_s * 1e6), next_stage.bytes_per_s))
        )

    def _inherit(self, message: Attach) -> None:
        """Move the sequences of the epoch that the new ring replaces, whose frames are dropped from now on."""
        replaced = self._rings.pop(message.inherits, None)
        for _ in range(self._sender.forget(message.inherits)):
            self.status.drop("a frame of a ring that was replaced")
        if replaced is not None:
            replaced.close()
        self.runner.inherit(message.inherits, message.epoch)

    def _held(self, epoch: int) -> Iterator[Held]:
        layers = self.runner.model.layers
        yield from held_messages(epoch, "kv", layers, self.runner.lengths(epoch))
        yield from held_messages(epoch, "log", layers, self._boundary_log.lengths(epoch))

    def _detach(self, epoch: int) -> None:
        ring = self._rings.pop(epoch, None)
        self._sender.forget(epoch)
        if ring is not None:
            ring.close()
        self.runner.forget(epoch)

    def _replay(self, replay: Replay) -> None:
        ring = self._rings.get(replay.epoch)
        if ring is None:
            return
        try:
            if ring.replays is None or replay.until <= ring.stage:
                raise StageFault("a replay goes to later stages")
            ring.replays.add(replay)
        except StageFault as fault:
            self._fault(ring, replay.epoch, replay.sequence, str(fault))

    def _move_bulk(self) -> bool:
        """Send the next piece of bulk data of each ring, where there is room; whether anything was sent."""
        moved = False
        for ring in list(self._rings.values()):
            try:
                moved |= self._move_replay(ring)
            except Exception as error:  # a boundary: a bad answer of one receiver must not end the stage
                if self._log_sampler.should_log("replay", type(error).__name__):
                    log.exception("a replay failed")
                for replay in ring.replays.clear() if ring.replays else ():
                    self._fault(ring, replay.epoch, replay.sequence, str(error))
        return moved

    def _move_replay(self, ring: Attachment) -> bool:
        if not ring.replays or ring.pace is None:
            return False
        ring.pace.read_echoes()
        if ring.unsent or not ring.pace.has_room(ring.replays.chunk_bytes):
            return False
        chunk = ring.replays.take()
        if chunk is not None:
            ring.pace.mark(self._sender.pass_on(ring, *chunk))
        return chunk is not None

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
        elif not isinstance(message, Echo) or message.reply or sum(map(len, tensor)) > PROBE_BYTES:
            raise RemoteProtocolError("an Echo that is a reply, or too long, or a message that a stage does not accept")
        else:
            self.data.send(sender.route, [encode(message._replace(reply=True)), *tensor])

    def _run(self, key: str, frame: Frame, tensor: list[memoryview]) -> None:
        ring = self._rings.get(frame.epoch)
        if ring is None:
            raise RemoteProtocolError(f"a frame of the unknown epoch {frame.epoch}")
        if key != ring.message.previous_key:
            raise RemoteProtocolError("a frame of another sender than the previous stage")
        if ring.arrived(frame.serial):
            self._report_lost(ring)
        self.status.busy_since_s = time.perf_counter()
        try:
            check_frame(ring, frame, self.runner.model.hidden_size)
            hidden = codec.decode(tensor, frame.rows, frame.width, frame.dtype, frame.codec)
            outcome = self.runner.run(frame, hidden)
            for sequence, reason in outcome.faults:
                self._fault(ring, frame.epoch, sequence, reason)
            if outcome.frame is not None:
                self._sender.send_result(ring, outcome.frame, outcome.hidden)
        except RemoteProtocolError:
            self._report_lost(ring)
            raise
        except Exception as error:  # a boundary: the requests of the frame end, the stage goes on
            if self._log_sampler.should_log("step", type(error).__name__):
                log.exception("a step failed")
            for sequence in sequences_of(frame):
                self._fault(ring, frame.epoch, sequence, f"{type(error).__name__}: {error}")
        finally:
            self.status.busy_since_s = None

    def _report_lost(self, ring: Attachment) -> None:
        self.outbox.put((ring.control, FrameLost(ring.message.epoch, ring.stage)))

    def _fault_unreachable(self, ring: Attachment, frame: Frame) -> None:
        for sequence in sequences_of(frame):
            reason = "the previous stage cannot reach this stage any more"
            self._fault(ring, frame.epoch, sequence, reason, ring.stage + 1)

    def _fault(self, ring: Attachment, epoch: int, sequence: int, reason: str, stage: int | None = None) -> None:
        faulty_stage = ring.stage if stage is None else stage
        self.runner.free(epoch, sequence)
        self.outbox.put((ring.control, Fault(epoch, sequence, faulty_stage, sentence(reason))))
