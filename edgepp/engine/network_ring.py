"""The ring over sockets: greets the stages, joins them, sends steps, and notices when a stage is lost.

The coordinator only ever connects, so that chatting opens no port. Every message of a stage is checked before use.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import zmq

from edgepp.engine.outstanding_steps import OutstandingSteps
from edgepp.engine.plan_check import Expectation, check_plan
from edgepp.engine.queue_times import QueueTimes
from edgepp.engine.rebuild_orders import RebuildOrders
from edgepp.engine.ring import Failed, RingEvent, Send, SendBatch, SequenceRebuilt, StageStats
from edgepp.engine.ring_links import RingLinks
from edgepp.engine.scheduler import MIN_ROWS
from edgepp.engine.stage_handshake import Endpoint, Peer, RingIdentity, greet_all
from edgepp.engine.stage_watch import StageWatch
from edgepp.engine.step_frames import frame_of, returned, returned_rows, traced_ring
from edgepp.engine.step_times import StepCost, StepTimes
from edgepp.errors import EdgeppError, RemoteProtocolError, StageError, StageFault, StageLost
from edgepp.model.weights.checkpoint import Array
from edgepp.wire import codec
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.field_types import MAX_TOKENS, LinkCodec
from edgepp.wire.frame_arrivals import FrameArrivals
from edgepp.wire.mailbox import AWAKE_S, Mailbox, Poller, wait_awake
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Detach, Fault, FrameLost, Free, Pong, Refused, Void
from edgepp.wire.messages.data import REPLAYED, Batch, Hidden
from edgepp.wire.messages.recovery import Held, Rebuilt
from edgepp.wire.permissions import check_speaker
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Link

_SEND_S = 1.0
_PATIENCE_S = 0.02
"""Seconds between two looks at the stages while the first one takes nothing."""
_LOOK_S = 0.005
"""Seconds between two looks at the stages at least, since a look takes longer than sending a step."""
_READ_S = 0.002
"""Seconds between two looks at all sockets, at least, while the engine waits awake for a result."""
_MAX_MESSAGES_PER_TURN = 100
"""Messages taken from one link before other links, and deadlines, have their turn."""


class NetworkRing:
    """A ring of stages in other processes. Implements ``Ring``."""

    overlaps = True

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        expected: Expectation,
        node: str,
        codecs: Sequence[LinkCodec] = ("auto",),
        keys: KeyPair | None = None,
        former: RingIdentity | None = None,
        *,
        keep_copies: bool = False,
        given_up: Callable[[], bool] = lambda: False,
        step_times: StepTimes | None = None,
    ) -> None:
        """Greet, check and join the stages at ``endpoints``, given in any order; ``keys`` are this node's own.

        ``codecs`` holds one codec for all links, or one per link: coordinator to stage 0, …, last stage to coordinator.
        Stages of the ``former`` ring, whose steps must have ended, bring its sequences along. ``keep_copies`` lets each
        stage keep copies of another one's keys and values. ``given_up`` says whether the ring is wanted no longer;
        ``step_times`` is what steps took in the former ring.

        Raises:
            PlanError: the stages do not make up the model.
            PairingError: a stage does not admit this node.
            StageLost: a stage does not answer, or cannot reach the next one.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._epoch = secrets.randbits(62)
        self._width, self._vocabulary = expected.hidden_size, expected.vocabulary
        self._peers: list[Peer] = []
        self._links: RingLinks | None = None
        self._events: list[RingEvent] = []
        self._numbers, self._answers = itertools.count(), FrameArrivals()
        self.step_times = step_times or StepTimes()
        """What steps took."""
        self._outstanding = OutstandingSteps(self.step_times)
        self._cleanup, self._failed = ExitStack(), False
        self.is_awake = False
        """Whether ``poll`` waits for results without sleeping."""
        self._mailboxes: list[Mailbox[Any]] = []
        self._awake_until_s = 0.0  # monotonic; until then, wait without sleeping where steps are in the ring
        self._looked_s = self._read_s = 0.0
        """When the stages were last looked at, and when ``_has_come`` last read all sockets."""
        try:
            self._peers += greet_all(self._context, list(dict.fromkeys(endpoints)), node, keys, given_up)
            check_plan(self._peers, expected)
            self._peers.sort(key=lambda peer: peer.layers)
            self._links = links = RingLinks(
                self._context, self._peers, codecs, expected, keys, former, keep_copies=keep_copies
            )
            links.join(self._epoch)
        except EdgeppError:
            self.close()
            raise
        self.orders = RebuildOrders(self._epoch, self._peers, links.holdings)
        """How sequences are rebuilt on these stages."""
        self._first, self._last = links.into_first, links.from_last
        self._codec = CodecChoice(links.codecs[0], links.bytes_per_s[0])
        self._queues = QueueTimes(links.ways_s, links.bytes_per_s)
        measured = zip(self._peers, links.hops_s, links.backs_s, links.bytes_per_s, strict=True)
        self.stages = tuple(peer.info(i, *of_link) for i, (peer, *of_link) in enumerate(measured))
        self._traced = traced_ring(self.stages, [peer.clock for peer in self._peers])
        self._controls = {peer.control: index for index, peer in enumerate(self._peers)}
        self._poller = Poller[Any](*(peer.control for peer in self._peers), *links.opened)
        for peer in self._peers:
            self._poller.wake_on(peer.control.events)
        self._watch = StageWatch(self._epoch, self._peers, self.stages, links, self._outstanding)
        self._cleanup.callback(self._watch.close)

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""
        self._poller.add(mailbox)
        self._mailboxes.append(mailbox)

    def send(self, step: Send | SendBatch) -> None:
        """Send a step to the first stage."""
        number = next(self._numbers)
        codec_name, tensor = self._codec.encode(step.hidden)
        if step.trace is not None:
            step.trace.sent_s, step.trace.ring = time.perf_counter(), self._traced
        header = frame_of(step, self._epoch, number, codec_name, len(self._peers) - 1)
        cost = StepCost.of(step, self.stages)
        sent_s, now_s = time.perf_counter(), time.monotonic()
        self._awake_until_s = now_s + AWAKE_S if self.is_awake else 0.0
        void = self._outstanding.sent(number, step, cost, sent_s, now_s, self._watch.reconnects)
        self._send_first([encode(header._replace(checksum=codec.checksum(tensor))), *tensor])
        for sequence, position in void.items():
            self._tell_stages(Void(self._epoch, sequence, number, position))

    @property
    def refill_rows(self) -> int:
        """Greatest number of rows of one ``refill``."""
        return min(MAX_TOKENS, max(MIN_ROWS, self.stages[0].chunk))

    def refill(self, sequence: int, position: int, capacity: int, hidden: Array, until: int, source: int = 0) -> None:
        """Send the embeddings (T, D) of positions ``[position, position + T)`` through the stages up to ``until``.

        A sequence that they do not know begins with the first ``position`` positions of ``source``. One ``Rebuilt`` of
        the stage ``until`` comes back.
        """
        codec_name, tensor = self._codec.encode(hidden)
        step = Send(sequence, position, capacity, 0, hidden, source)
        header = frame_of(step, self._epoch, next(self._numbers), codec_name, until)
        header = header._replace(step=REPLAYED, checksum=codec.checksum(tensor))
        self._send_first([encode(header), *tensor])

    def _send_first(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Send to the first stage, which may take ``_SEND_S`` seconds; False where the stage is lost."""
        until_s = time.monotonic() + _SEND_S
        while not self._first.send(parts, 0.0 if self._failed else _PATIENCE_S):
            self._fail(self._watch.look(judging=not self._failed))  # a stage that ended need not be waited for
            if not self._failed and time.monotonic() >= until_s:
                self._fail(StageLost(f"{self.stages[0]} takes no more hidden states"))
            if self._failed:
                return False
        return True

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events within ``timeout_s`` seconds; returns at the first. Also pings the stages and checks deadlines."""
        looks = (now_s := time.monotonic()) - self._looked_s >= _LOOK_S
        if looks:
            self._looked_s = now_s
            self._fail(self._watch.look(judging=not self._failed))
        if not self._events:
            self._wait(min(timeout_s, self._watch.wait_s))
        if looks and not self._failed:
            self._fail(self._watch.overdue())
        events, self._events = self._events, []
        return events

    def _wait(self, timeout_s: float) -> None:
        """Receive what the stages say next, or return when a mailbox has something, for up to ``timeout_s`` seconds."""
        awake_s = min(timeout_s, self._awake_until_s - time.monotonic())
        if awake_s > 0 and self._outstanding:
            until_s = time.monotonic() + timeout_s
            if wait_awake(self._has_come, awake_s):
                return
            timeout_s = max(0.0, until_s - time.monotonic())
        self._read(timeout_s)

    def _has_come(self) -> bool:
        """Whether there is an event, or something in a mailbox; looks at the last stage's link, and rarely at all."""
        if self._receive(self._last) or any(mailbox.has_items for mailbox in self._mailboxes):
            return True
        if (now_s := time.monotonic()) - self._read_s >= _READ_S:
            self._read_s = now_s
            self._read(0.0)
        return bool(self._events)

    def _read(self, timeout_s: float) -> None:
        """Wait for the first message on any link, and receive all."""
        for reader in self._poller.wait(timeout_s):
            if isinstance(reader, Link):
                self._receive(reader)

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage; its steps in the ring give no event."""
        self._outstanding.forget(sequence)
        self._tell_stages(Free(self._epoch, sequence))

    def _tell_stages(self, message: Message) -> None:
        for peer in self._peers:
            peer.control.send([encode(message)])

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state by its last answer to a ping. Safe from any thread."""
        stats = zip(self._watch.stats(), self._queues.seconds, strict=True)
        return [replace(one, queue_s=queue_s) for one, queue_s in stats]

    def close(self) -> None:
        """Detach from the stages, and close all links."""
        self._cleanup.close()
        self._tell_stages(Detach(self._epoch))
        for peer in self._peers:
            peer.control.close(linger_s=0.5 if peer.control.is_connected() else 0.0)
        if self._links is not None:
            self._links.close()
        self._context.term()

    def _receive(self, link: Link) -> bool:
        """Handle the messages of a link, up to the result of the last step; whether there was any message."""
        index, taken = self._controls.get(link), False
        try:
            for _ in range(_MAX_MESSAGES_PER_TURN):
                if (frames := link.receive()) is None:
                    break
                taken, received_s = True, time.perf_counter()
                message = decode(frames[0])
                check_speaker(message, "control" if index is not None else "data", "stage")
                if index is None and isinstance(message, Hidden | Batch):
                    self._returned(message, frames[1:], received_s)
                    if not self._outstanding:
                        break
                elif index is not None:
                    self._heard(index, message)
        except RemoteProtocolError as error:
            stage = self.stages[-1] if index is None else self.stages[index]
            self._fail(StageLost(f"{stage} broke the protocol: {error}"))
        return taken

    def _returned(self, message: Hidden | Batch, tensor: list[memoryview], received_s: float) -> None:
        """Take an answer of the last stage, which came at ``received_s``."""
        if message.epoch != self._epoch:
            return
        if self._answers.arrived(message.serial):  # it must not be taken for the one that was lost
            self._fail(StageLost(f"an answer of {self.stages[-1]} was lost on its way"))
            return
        answered = self._outstanding.answered(message, time.monotonic())
        if answered is None:
            return
        width = answered.step.result.width(self._width, self._vocabulary)
        rows = returned_rows(message, tensor, answered.step, width, stages=len(self._peers))
        ring_s = time.perf_counter() - answered.sent_s
        event = returned(message, rows, answered.step, ring_s, received_s)
        waits_s = self._queues.add(answered.sent_s, answered.step.hidden.nbytes, event.compute_s, ring_s)
        self._events.append(replace(event, queue_s=waits_s))

    def _heard(self, index: int, message: Message) -> None:
        """Take a message on the control link of stage ``index``."""
        match message:
            case Pong(epoch=self._epoch):
                self._fail(self._watch.heard(index, message))
            case Fault(epoch=self._epoch):
                self._outstanding.forget(message.sequence)
                error = StageFault(f"{self.stages[index]} failed: {message.reason}")
                self._events.append(Failed(message.sequence, error))
            case Held(epoch=self._epoch):
                self.orders.note(index, message)
            case Rebuilt(epoch=self._epoch):
                self._events.append(SequenceRebuilt(index, message.sequence, message.length))
            case FrameLost(epoch=self._epoch):
                self._fail(self._watch.frame_lost(index, message.stage))
            case Refused():
                raise RemoteProtocolError(message.reason)

    def _fail(self, error: StageError | None) -> None:
        if error is not None and not self._failed:
            self._failed = True
            self._cleanup.close()
            error.hint = error.hint or "check that machine, then ask again; `edgepp join` starts its stage again"
            self._events.append(Failed(None, error))
