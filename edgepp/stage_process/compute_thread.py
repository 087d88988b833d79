"""A stage's compute thread: owns the model and the data socket, so the thread that receives a frame also runs it."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edgepp.errors import RemoteProtocolError
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.model_runner import Answer, Frame, ModelRunner, answer_to, sequences_of
from edgepp.stage_process.next_stage import NextStageLink, Reply
from edgepp.wire import codec
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.link_rate import PROBE_BYTES
from edgepp.wire.log_sampler import LogSampler
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Attached, Batch, Detach, Echo, Fault, Forward, Free, Pong
from edgepp.wire.permissions import check_speaker
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Link, Listener, Sender

log = logging.getLogger("edgepp.stage")

AWAKE_S = 0.05
"""How long a stage waits for the next frame without sleeping, where that was asked for."""
_SEND_WAIT_S = 1.0
"""How long a frame waits for a next stage that takes no more, while other rings go on."""
_RETRY_INTERVAL_S = 0.005
_MAX_UNSENT_FRAMES = 64
"""Frames of one ring that may wait so."""

Command = NextStageLink | Detach | Free | None
"""What the control thread hands over; None means stop."""


_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


@dataclass
class Attachment:
    """One coordinator's pipeline, as a stage of it sees it."""

    stage: int
    control: bytes
    previous_key: str
    """Who may send frames of the ring; empty where the data socket is not encrypted."""
    next: Link | None
    route: bytes
    codec: CodecChoice
    waiting: deque[_UnsentFrame] = field(default_factory=deque)
    """Frames that the next stage has not taken yet, oldest first."""


@dataclass(frozen=True)
class _UnsentFrame:
    frame: Frame
    parts: list[bytes | memoryview]
    until_s: float


class ComputeStatus:
    """What the control thread may read while the compute thread works."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.busy_since: float | None = None

    def pong(self, epoch: int, *, known: bool) -> Pong:
        """The present state as a ``Pong``."""
        since = self.busy_since
        busy_us = 0 if since is None else max(1, int((time.perf_counter() - since) * 1e6))
        runner = self._runner
        return Pong(
            epoch,
            known,
            busy_us,
            runner.counters.frames,
            runner.counters.dropped,
            runner.sequences,
            runner.model.kv_bytes,
        )

    def drop(self, reason: object) -> None:
        """Count a dropped frame; log the 1st, 10th, 100th … so that a flood cannot fill a disk."""
        count = self._runner.counters.dropped = self._runner.counters.dropped + 1
        if str(count).strip("0") == "1":
            log.warning("dropped frame %d: %s", count, reason)


class ComputeThread:
    """The compute thread: takes frames off the data socket, runs them, sends them on."""

    def __init__(self, runner: ModelRunner, data: Listener, *, awake: bool = False) -> None:
        self.runner = runner
        self._awake = awake
        self.data = data
        self.inbox: Mailbox[Command] = Mailbox()
        self.outbox: Mailbox[Reply] = Mailbox()
        self.status = ComputeStatus(runner)
        self._rings: dict[int, Attachment] = {}
        self._congested: dict[int, Attachment] = {}
        """Rings with frames that wait for the next stage, by epoch."""
        self._log_sampler = LogSampler()

    def run(self) -> None:
        """Serve until told to stop."""
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
            if self._congested:
                self._send_on()

    def _wait(self, poller: Poller[Command]) -> list[Listener | Link | Mailbox[Command]]:
        """Wait for the next frame or command, awake for a moment where sequences are open.

        A processor that slept through the other stages' part of a token takes up to a millisecond to be fast again.
        """
        if self._congested:
            return poller.wait(_RETRY_INTERVAL_S)
        until_s = time.perf_counter() + (AWAKE_S if self._awake and self.runner.sequences else 0.0)
        while time.perf_counter() < until_s:
            if ready := poller.wait(0.0):
                return ready
            _yield()
        return poller.wait(60.0)

    def close(self) -> None:
        """Release sockets and caches."""
        for command in self.inbox.drain():
            if isinstance(command, NextStageLink):
                self.execute(command)
        for epoch in list(self._rings):
            self._detach(epoch)
        self.data.close()

    def execute(self, command: NextStageLink | Detach | Free) -> None:
        """Do what the control thread wants done; an unexpected error costs that command."""
        try:
            match command:
                case NextStageLink():
                    self._attach(command)
                case Free():
                    self.runner.free(command.epoch, command.sequence)
                case Detach():
                    self._detach(command.epoch)
        except Exception as error:
            if self._log_sampler.should_log("command", type(error).__name__):
                log.exception("a command failed")

    def _attach(self, joined: NextStageLink) -> None:
        attempt, link = joined.attempt, joined.link
        message = attempt.message
        if attempt.given_up:
            if link is not None:
                link.close()
            return
        self._detach(message.epoch)
        choice = CodecChoice(message.codec, joined.bytes_per_s if link is not None else message.return_bytes_per_s)
        route = bytes.fromhex(message.route)
        self._rings[message.epoch] = Attachment(
            message.stage, attempt.control, message.previous_key, link, route, choice
        )
        self.outbox.put((attempt.control, Attached(message.epoch, int(joined.echo_s * 1e6), joined.bytes_per_s)))

    def _detach(self, epoch: int) -> None:
        ring = self._rings.pop(epoch, None)
        self._congested.pop(epoch, None)
        if ring is not None and ring.next is not None:
            ring.next.close()
        self.runner.forget(epoch)

    def receive(self) -> None:
        """Take one message of the data socket; an unexpected error costs that message."""
        try:
            received = self.data.receive()
            if received is not None:
                sender, (header, *tensor) = received
                self._take(sender, header, tensor)
        except RemoteProtocolError as error:
            self.status.drop(error)
        except Exception as error:
            self.status.drop(error)
            if self._log_sampler.should_log("message", type(error).__name__):
                log.exception("a message failed")

    def _take(self, sender: Sender, header: memoryview, tensor: list[memoryview]) -> None:
        message = decode(header)
        check_speaker(message, "data", "guest")
        if isinstance(message, Forward | Batch):
            self._run(sender.key, message, tensor)
        elif not isinstance(message, Echo) or message.reply or sum(map(len, tensor)) > PROBE_BYTES:
            raise RemoteProtocolError("an echo that nobody asked for, or of too many bytes")
        else:
            self.data.send(sender.route, [encode(message._replace(reply=True)), *tensor])

    def _run(self, key: str, frame: Frame, tensor: list[memoryview]) -> None:
        ring = self._rings.get(frame.epoch)
        if ring is None:
            raise RemoteProtocolError(f"a frame of the unknown epoch {frame.epoch}")
        if key != ring.previous_key:
            raise RemoteProtocolError("a frame of another sender than the previous stage")
        if frame.width != self.runner.model.hidden_size:
            raise RemoteProtocolError(f"a frame of shape ({frame.rows}, {frame.width})")
        self.status.busy_since = time.perf_counter()
        try:
            hidden = codec.decode(tensor, frame.rows, frame.width, frame.dtype, frame.codec)
            outcome = self.runner.run(frame, hidden)
            for sequence, reason in outcome.faults:
                self._fault(ring, frame.epoch, sequence, reason)
            if outcome.frame is not None:
                self._send(ring, outcome.frame, outcome.hidden)
        except RemoteProtocolError:
            raise
        except Exception as error:  # the stage loop is a boundary: the node lives on, the requests end
            if self._log_sampler.should_log("step", type(error).__name__):
                log.exception("a step failed")
            for sequence in sequences_of(frame):
                self._fault(ring, frame.epoch, sequence, f"{type(error).__name__}: {error}")
        finally:
            self.status.busy_since = None

    def _send(self, ring: Attachment, frame: Frame, hidden: Array) -> None:
        header: Frame | Answer = frame
        if ring.next is None:
            header, hidden = answer_to(frame, hidden)
        name, tensor = ring.codec.encode(hidden)
        parts = [encode(header if header.codec == name else header._replace(codec=name)), *tensor]
        if ring.next is None:
            if not self.data.send(ring.route, parts):
                self.status.drop("the coordinator is gone")
        elif ring.waiting or not ring.next.send(parts):
            if len(ring.waiting) >= _MAX_UNSENT_FRAMES:
                self._unreachable(ring, frame)
                return
            ring.waiting.append(_UnsentFrame(frame, parts, time.monotonic() + _SEND_WAIT_S))
            self._congested[frame.epoch] = ring

    def _send_on(self) -> None:
        """Send what next stages would not take before, without waiting for them."""
        now_s = time.monotonic()
        for epoch, ring in list(self._congested.items()):
            while ring.waiting:
                first = ring.waiting[0]
                if ring.next is None or ring.next.send(first.parts):
                    ring.waiting.popleft()
                elif now_s > first.until_s:
                    self._unreachable(ring, ring.waiting.popleft().frame)
                else:
                    break
            if not ring.waiting:
                del self._congested[epoch]

    def _unreachable(self, ring: Attachment, frame: Frame) -> None:
        for sequence in sequences_of(frame):
            reason = "the stage before it cannot reach it any more"
            self._fault(ring, frame.epoch, sequence, reason, ring.stage + 1)

    def _fault(self, ring: Attachment, epoch: int, sequence: int, reason: str, stage: int | None = None) -> None:
        culprit = ring.stage if stage is None else stage
        self.runner.free(epoch, sequence)
        self.outbox.put((ring.control, Fault(epoch, sequence, culprit, sentence(reason))))
