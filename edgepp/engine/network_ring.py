"""The ring over sockets: greets the stages, joins them, sends steps, and notices when a stage is lost.

The coordinator only ever connects, so that chatting opens no port. Every message of a stage is checked before use.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import zmq

from edgepp.engine import ring
from edgepp.engine.outstanding_steps import OutstandingSteps
from edgepp.engine.queue_times import QueueTimes
from edgepp.engine.rebuild_orders import RebuildOrders
from edgepp.engine.ring import Failed, RingEvent, Send, SendBatch, StageInfo, StageStats, frame_of, returned
from edgepp.engine.ring_links import RingLinks
from edgepp.engine.scheduler import MIN_ROWS
from edgepp.engine.stage_handshake import Endpoint, Expectation, Peer, RingIdentity, check_plan, greet_all
from edgepp.errors import EdgeppError, RemoteProtocolError, StageError, StageFault, StageLost
from edgepp.model.weights.checkpoint import Array
from edgepp.wire import codec
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.field_types import MAX_TOKENS, LinkCodec
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import (
    REPLAYED,
    Batch,
    Detach,
    Fault,
    FrameLost,
    Free,
    Held,
    Hidden,
    Message,
    Ping,
    Pong,
    Rebuilt,
    Refused,
)
from edgepp.wire.permissions import check_speaker
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Link

PING_S = 1.0
"""Seconds between two pings of a stage."""
LOST_S = 5.0
"""Seconds without an answer to a ping after which a stage is lost."""
GONE_PINGS = 2
"""Pings in a row without a connection after which a stage is gone."""

_SEND_S = 1.0
_MAX_MESSAGES_PER_TURN = 100
"""Messages taken from one link before other links, and deadlines, have their turn."""


class NetworkRing:
    """A ring of stages in other processes. Implements ``Ring``."""

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
    ) -> None:
        """Greet, check and join the stages at ``endpoints``, given in any order; ``keys`` are this node's own.

        ``codecs`` holds one codec for all links, or one per link: coordinator to stage 0, …, last stage to coordinator.
        Stages of the ``former`` ring, whose steps must have ended, bring its sequences along. ``keep_copies`` lets each
        stage keep copies of another one's keys and values. ``given_up`` says whether the ring is wanted no longer.

        Raises:
            PlanError: the stages do not make up the model.
            PairingError: a stage does not admit this node.
            StageLost: a stage does not answer, or cannot reach the next one.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._epoch = secrets.randbits(62)
        self._width = expected.hidden_size
        self._peers: list[Peer] = []
        self._links: RingLinks | None = None
        self._events: list[RingEvent] = []
        self._numbers = itertools.count()
        self._outstanding = OutstandingSteps()
        self._failed = False
        try:
            self._peers += greet_all(self._context, list(dict.fromkeys(endpoints)), node, keys, given_up)
            check_plan(self._peers, expected)
            self._peers.sort(key=lambda peer: peer.layers)
            self._links = links = RingLinks(
                self._context, self._peers, codecs, self._width, keys, former, keep_copies=keep_copies
            )
            links.join(self._epoch)
        except EdgeppError:
            self.close()
            raise
        self.orders = RebuildOrders(self._epoch, self._peers, links.holdings)
        """How sequences are rebuilt on these stages."""
        self._first = links.into_first
        self._codec = CodecChoice(links.codecs[0], links.bytes_per_s[0])
        self._queues = QueueTimes(links.ways_s, links.bytes_per_s)
        measured = zip(self._peers, links.hops_s, links.bytes_per_s, strict=True)
        self.stages = tuple(_stage_info(i, *one) for i, one in enumerate(measured))
        self._poller = Poller[Any](*(peer.control for peer in self._peers), *links.opened)
        self._polled_s = self._pinged_s = time.monotonic()
        for peer in self._peers:
            peer.heard_s = self._polled_s

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """Let ``poll`` return early when ``mailbox`` has something."""
        self._poller.add(mailbox)

    def send(self, step: Send | SendBatch) -> None:
        """Send a step to the first stage."""
        number = next(self._numbers)
        codec_name, tensor = self._codec.encode(step.hidden)
        header = frame_of(step, self._epoch, number, codec_name, len(self._peers) - 1)
        batch = isinstance(step, SendBatch)
        expected_s = sum(s.decode_s if batch else s.prefill_s * len(step.hidden) for s in self.stages)
        self._outstanding.sent(number, step, expected_s, time.perf_counter(), time.monotonic())
        if not self._first.send([encode(header), *tensor], _SEND_S):
            self._fail(StageLost(f"{self.stages[0]} takes no more hidden states"))

    def refill(self, sequence: int, capacity: int, hidden: Array, until: int) -> None:
        """Send the embeddings (T, D) of a sequence's first T positions through the stages up to ``until``.

        ``Rebuilt`` events say how far that stage has come.
        """
        chunk = min(MAX_TOKENS, max(MIN_ROWS, self.stages[0].chunk))
        for start in range(0, len(hidden), chunk):
            rows = hidden[start : start + chunk]
            codec_name, tensor = self._codec.encode(rows)
            step = Send(sequence, start, capacity, 0, rows)
            header = frame_of(step, self._epoch, next(self._numbers), codec_name, until)
            if not self._first.send([encode(header._replace(step=REPLAYED)), *tensor], _SEND_S):
                self._fail(StageLost(f"{self.stages[0]} takes no more hidden states"))
                return

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """Events within ``timeout_s`` seconds; returns at the first. Also pings the stages and checks deadlines."""
        self._postpone_after_sleep()
        self._ping()
        if not self._events:
            for reader in self._poller.wait(min(timeout_s, PING_S / 2)):
                if isinstance(reader, Link):
                    self._receive(reader)
        self._check_deadlines()
        events, self._events = self._events, []
        return events

    def free(self, sequence: int) -> None:
        """Release a sequence on every stage; its steps in the ring give no event."""
        self._outstanding.forget(sequence)
        for peer in self._peers:
            peer.control.send([encode(Free(self._epoch, sequence))])

    def stage_stats(self) -> list[StageStats]:
        """Each stage's state by its last answer to a ping. Safe from any thread."""
        return [
            replace(peer.stats, queue_s=queue_s)
            for peer, queue_s in zip(self._peers, self._queues.seconds, strict=True)
        ]

    def close(self) -> None:
        """Detach from the stages, and close all links."""
        for peer in self._peers:
            peer.control.send([encode(Detach(self._epoch))])
            peer.control.close(linger_s=0.5)
        if self._links is not None:
            self._links.close()
        self._context.term()

    def _receive(self, link: Link) -> None:
        index = next((i for i, peer in enumerate(self._peers) if peer.control is link), None)
        try:
            for _ in range(_MAX_MESSAGES_PER_TURN):
                if (frames := link.receive()) is None:
                    return
                message = decode(frames[0])
                check_speaker(message, "control" if index is not None else "data", "stage")
                if index is None and isinstance(message, Hidden | Batch):
                    self._returned(message, frames[1:])
                elif index is not None:
                    self._heard(index, message)
        except RemoteProtocolError as error:
            stage = self.stages[-1] if index is None else self.stages[index]
            self._fail(StageLost(f"{stage} broke the protocol: {error}"))

    def _returned(self, message: Hidden | Batch, tensor: list[memoryview]) -> None:
        """Take an answer of the last stage."""
        if message.epoch != self._epoch:
            return
        answered = self._outstanding.answered(message, time.monotonic())
        if answered is None:
            return
        if message.width != self._width or len(message.compute_us) != len(self._peers):
            raise RemoteProtocolError("a result of another shape than was asked for")
        hidden = codec.decode(tensor, message.rows, message.width, message.dtype, message.codec)
        ring_s = time.perf_counter() - answered.sent_s
        event = returned(message, hidden, answered.step.positions_each, ring_s)
        self._queues.add(answered.sent_s, answered.step.hidden.nbytes, event.compute_s, ring_s)
        self._events.append(event)

    def _heard(self, index: int, message: Message) -> None:
        """Take a message on the control link of stage ``index``."""
        peer = self._peers[index]
        match message:
            case Pong(epoch=self._epoch):
                peer.heard_s, peer.busy_us = time.monotonic(), message.busy_us
                peer.stats = StageStats(
                    message.sequences,
                    message.kv_bytes,
                    message.frames,
                    message.dropped,
                    message.received_bytes,
                    message.sent_bytes,
                    message.reconnects + (self._links.reconnects(index) if self._links else 0),
                )
                if not message.known:
                    self._fail(StageLost(f"{self.stages[index]} has forgotten this chat: it was restarted or asleep"))
            case Fault(epoch=self._epoch):
                self._outstanding.forget(message.sequence)
                error = StageFault(f"{self.stages[index]} failed: {message.reason}")
                self._events.append(Failed(message.sequence, error))
            case Held(epoch=self._epoch):
                self.orders.note(index, message)
            case Rebuilt(epoch=self._epoch):
                self._events.append(ring.Rebuilt(index, message.sequence, message.length))
            case FrameLost(epoch=self._epoch):
                self._lose_frame(index, message.stage)
            case Refused():
                raise RemoteProtocolError(message.reason)

    def _lose_frame(self, teller: int, stage: int) -> None:
        """Give up the ring: its stage ``teller`` says that a frame did not reach ``stage``, itself or the next one."""
        if stage == teller:
            self._fail(StageLost(f"a frame did not reach {self.stages[stage]}"))
        elif stage == teller + 1 < len(self.stages):
            self._fail(StageLost(f"{self.stages[stage]} is gone: the previous stage cannot reach this stage any more"))

    def _ping(self) -> None:
        now_s = time.monotonic()
        if now_s - self._pinged_s < PING_S or self._links is None:
            return
        self._pinged_s = now_s
        for link in self._links.opened:
            link.enforce_limits()
        for index, peer in enumerate(self._peers):
            peer.unsent = 0 if peer.control.send([encode(Ping(self._epoch))]) else peer.unsent + 1
            if peer.unsent >= GONE_PINGS:
                self._fail(StageLost(f"{self.stages[index]} is gone: its connection is closed"))

    def _postpone_after_sleep(self) -> None:
        """Do not blame the stages for the time in which this process itself did not run."""
        now_s = time.monotonic()
        gap_s = now_s - self._polled_s
        self._polled_s = now_s
        if gap_s > 2 * PING_S:
            self._outstanding.postpone(gap_s)
            for peer in self._peers:
                peer.heard_s += gap_s

    def _check_deadlines(self) -> None:
        now_s = time.monotonic()
        for index, peer in enumerate(self._peers):
            if now_s - peer.heard_s > LOST_S:
                self._fail(StageLost(f"{self.stages[index]} stopped answering", hanging=index))
        if (overdue_s := self._outstanding.overdue_s(now_s)) is not None:
            self._fail(self._blame(overdue_s))
        elif self._outstanding.is_incomplete(now_s):
            self._fail(StageLost(f"{self.stages[-1]} left out a part of an answer: it was lost on the way"))

    def _blame(self, silent_s: float) -> StageError:
        busiest = max(range(len(self._peers)), key=lambda i: self._peers[i].busy_us)
        if self._peers[busiest].busy_us:
            wedged = f"{self.stages[busiest]} has been at one step for {silent_s:.0f} s and counts as wedged"
            return StageLost(wedged, hanging=busiest)
        return StageLost(
            f"nothing came back from {self.stages[-1]} for {silent_s:.0f} s although no stage is computing:"
            " a frame was lost on the way"
        )

    def _fail(self, error: StageError) -> None:
        if not self._failed:
            self._failed = True
            error.hint = error.hint or "check that machine, then ask again; `edgepp join` starts its stage again"
            self._events.append(Failed(None, error))


def _stage_info(index: int, peer: Peer, hop_s: float, bytes_per_s: int) -> StageInfo:
    welcome = peer.welcome
    return StageInfo(
        index=index,
        layers=peer.layers,
        node=welcome.node,
        address=str(peer.address),
        pid=welcome.pid,
        backend=welcome.backend,
        device=welcome.device,
        chunk=welcome.chunk,
        context=welcome.context,
        prefill_s=welcome.prefill_us / 1e6,
        decode_s=welcome.decode_us / 1e6,
        rewinds=welcome.rewinds,
        hop_s=hop_s,
        bytes_per_s=float(bytes_per_s),
    )
