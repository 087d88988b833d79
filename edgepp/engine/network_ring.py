"""The ring over sockets: finds out what the stages are, joins them, feeds them, and notices when one is lost.

The coordinator only ever connects, so that chatting opens no port. What a stage says is checked before it is believed.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import zmq

from edgepp.engine.ring import Failed, RingEvent, Send, SendBatch, StageInfo, StageStats, frame_of, returned
from edgepp.engine.stage_handshake import ANSWER_S, Endpoint, Expectation, Peer, ask, check_plan, greet
from edgepp.errors import EdgeppError, PlanError, RemoteProtocolError, StageError, StageFault, StageLost
from edgepp.wire import codec
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.field_types import LinkCodec
from edgepp.wire.link_rate import PROBE_BYTES, link_rate, measure_echo
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import (
    Attach,
    Attached,
    Batch,
    Detach,
    Fault,
    Free,
    Hidden,
    Message,
    Ping,
    Pong,
    Refused,
    max_data_frame_bytes,
)
from edgepp.wire.permissions import check_speaker
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.transport import Link

ATTACH_S = 10.0
MOST_ADDRESSES = 8
"""Addresses of one stage that another is told to try."""
PING_S = 1.0
LOST_S = 5.0
"""A stage whose last answer is older is lost."""
GONE_PINGS = 2
"""A stage to which so many pings in a row find no connection is gone."""
STEP_S = 8.0
"""How long a step may take, or four times what the measured speeds say, before its stage counts as wedged."""
MOST_STEP_S = 120.0
"""The same, whatever a stage says of its speeds."""

_MOST_A_TURN = 100
"""Messages of one link that are taken before others, and deadlines, have their turn."""


@dataclass
class Outstanding:
    """A step in the ring: when it was sent, and how long the stages' measured speeds say it takes."""

    step: Send | SendBatch
    awaited: set[int]
    """Sequences whose rows have neither come back nor failed nor been cancelled."""
    sent_s: float
    expected_s: float
    overtaken_s: float = 0.0
    """When it was answered, or a later step was, by the monotonic clock: the ring is in order, so only a ``Fault`` can
    still tell of the rest."""

    def is_answered_by(self, message: Hidden | Batch) -> bool:
        """Whether ``message`` has the rows that this step asked for, or, of a batch, those of some sequences."""
        if isinstance(self.step, Send):
            wanted = (self.step.sequence, self.step.want)
            return isinstance(message, Hidden) and (message.sequence, message.rows) == wanted
        return isinstance(message, Batch) and set(message.sequences) <= set(self.step.sequences)


class NetworkRing:
    """A ring of stages in other processes."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        expected: Expectation,
        node: str,
        codecs: Sequence[LinkCodec] = ("auto",),
        keys: KeyPair | None = None,
    ) -> None:
        """Greet, check and join the stages at ``endpoints``, given in any order; ``keys`` are this node's own.

        ``codecs`` holds one for every link, or one a link: coordinator to stage 0, …, last stage to coordinator.

        Raises:
            PlanError: the stages do not make up the model.
            PairingError: one of them does not admit this node.
            StageLost: one of them does not answer or cannot reach the next.
        """
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._epoch = secrets.randbits(62)
        self._width = expected.hidden_size
        self._peers: list[Peer] = []
        self._links: list[Link] = []
        self._events: list[RingEvent] = []
        self._steps = itertools.count()
        self._outstanding: dict[int, Outstanding] = {}
        self._failed = False
        try:
            for endpoint in dict.fromkeys(endpoints):
                self._peers.append(greet(self._context, endpoint, node, keys))
            check_plan(self._peers, expected)
            self._peers.sort(key=lambda peer: peer.layers)
            self._codecs = self._spread(codecs)
            hops_s = self._join()
        except EdgeppError:
            self.close()
            raise
        self.stages = tuple(self._info(i, hop_s) for i, hop_s in enumerate(hops_s))
        self._poller = Poller[Any](*(peer.control for peer in self._peers), *self._links)
        self._polled_s = self._progress_s = self._pinged_s = time.monotonic()
        for peer in self._peers:
            peer.heard_s = self._polled_s

    def _spread(self, codecs: Sequence[LinkCodec]) -> list[LinkCodec]:
        links = len(self._peers) + 1
        spread = list(codecs) * links if len(codecs) == 1 else list(codecs)
        if len(spread) != links or not set(spread) <= set(get_args(LinkCodec)):
            raise PlanError(
                f"{len(self._peers)} stages have {links} links; '{','.join(codecs)}' does not name a codec for each",
                f"give one codec for all, or {links} separated by commas, of {', '.join(get_args(LinkCodec))}",
            )
        return spread

    def _join(self) -> list[float]:
        """Attach the stages, last to first, so that each finds the next one listening; one-way seconds a hop."""
        route = b"c" + secrets.token_bytes(15)
        hops_s = [0.0] * len(self._peers)
        self._bytes_per_s = [0] * len(self._peers)
        self._links.append(self._data_link(self._peers[-1], route))
        if len(self._peers) > 1:
            self._links.append(self._data_link(self._peers[0]))
        back_s, back_bytes_per_s = self._measure(self._links[0], self._peers[-1])
        there_s, self._bytes_per_s[0] = self._measure(self._links[-1], self._peers[0])
        for i in reversed(range(len(self._peers))):
            attached = self._attach(i, route, back_bytes_per_s if i + 1 == len(self._peers) else 0)
            if i + 1 < len(self._peers):
                hops_s[i + 1] = attached.echo_us / 2e6
                self._bytes_per_s[i + 1] = attached.bytes_per_s
        hops_s[-1] += back_s
        hops_s[0] += there_s
        self._codec = CodecChoice(self._codecs[0], self._bytes_per_s[0])
        return hops_s

    def _data_link(self, peer: Peer, route: bytes | None = None) -> Link:
        protection = pinned(self._keys, peer.endpoint.key)
        return Link(self._context, peer.data_address, max_data_frame_bytes(self._width), route, protection)

    def _attach(self, index: int, route: bytes, back_bytes_per_s: int) -> Attached:
        peer = self._peers[index]
        addresses, next_key = "", ""
        if index + 1 < len(self._peers):
            addresses, next_key = self._way(peer, self._peers[index + 1]), self._peers[index + 1].endpoint.key
        message = Attach(
            epoch=self._epoch,
            stage=index,
            previous_key=self._previous_key(index),
            next_addresses=addresses,
            next_key=next_key,
            route=route.hex(),
            codec=self._codecs[index + 1],
            return_bytes_per_s=back_bytes_per_s,
        )
        answer = ask(peer.control, message, ATTACH_S, str(peer))
        if isinstance(answer, Attached):
            return answer
        reason = answer.reason if isinstance(answer, Refused) else f"it answered {type(answer).__name__}"
        raise StageLost(f"{peer} cannot join: {reason}", "check that address, and the firewall between the two")

    def _previous_key(self, index: int) -> str:
        """The key that the sender of a stage's frames proves to it; empty where the stage is not encrypted."""
        if self._keys is None or not self._peers[index].endpoint.key:
            return ""
        return self._peers[index - 1].endpoint.key if index else self._keys.public

    @staticmethod
    def _way(peer: Peer, following: Peer) -> str:
        """Where ``peer`` may try to reach the stage that follows it."""
        addresses = following.data_addresses
        if not peer.address.is_loopback:
            addresses = tuple(address for address in addresses if not address.is_loopback)
        if not addresses:
            raise PlanError(
                f"{peer} cannot reach {following}, which only this machine can reach",
                "restart that one with --listen and its address on your network, and give that to --peer",
            )
        return ",".join(map(str, addresses[:MOST_ADDRESSES]))

    def _measure(self, link: Link, peer: Peer) -> tuple[float, int]:
        """Seconds one way, and bytes a second."""
        itemsize = codec.DTYPES[peer.welcome.dtype].itemsize
        probe = min(PROBE_BYTES, max_data_frame_bytes(self._width))
        try:
            echo_s = measure_echo(link, self._width * itemsize, ANSWER_S)
            large_s = measure_echo(link, probe, ANSWER_S, rounds=2)
        except RemoteProtocolError as error:
            raise StageLost(f"{peer} cannot be understood: {error}") from error
        if echo_s is None or large_s is None:
            raise StageLost(
                f"the data port {peer.data_address} of {peer} does not answer",
                "a node uses two neighbouring ports: open both in its firewall",
            )
        return echo_s / 2, link_rate(echo_s, large_s, probe)

    def _info(self, index: int, hop_s: float) -> StageInfo:
        peer = self._peers[index]
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
            bytes_per_s=float(self._bytes_per_s[index]),
        )

    def wake_on(self, mailbox: Mailbox[Any]) -> None:
        """See ``Ring``."""
        self._poller.add(mailbox)

    def send(self, step: Send | SendBatch) -> None:
        """See ``Ring``."""
        number = next(self._steps)
        codec_name, tensor = self._codec.encode(step.hidden)
        header = frame_of(step, self._epoch, number, codec_name)
        if not self._outstanding:
            self._progress_s = time.monotonic()
        batch = isinstance(step, SendBatch)
        expected_s = sum(s.decode_s if batch else s.prefill_s * len(step.hidden) for s in self.stages)
        awaited = set(step.sequences) if isinstance(step, SendBatch) else {step.sequence}
        self._outstanding[number] = Outstanding(step, awaited, time.perf_counter(), expected_s)
        if not self._links[-1].send([encode(header), *tensor], 1.0):
            self._fail(StageLost(f"{self.stages[0]} takes no more hidden states"))

    def poll(self, timeout_s: float) -> list[RingEvent]:
        """See ``Ring``. Also pings the stages and holds every wait to its deadline."""
        self._forgive_sleep()
        self._ping()
        if not self._events:
            for reader in self._poller.wait(min(timeout_s, PING_S / 2)):
                if isinstance(reader, Link):
                    self._receive(reader)
        self._check_deadlines()
        events, self._events = self._events, []
        return events

    def free(self, sequence: int) -> None:
        """See ``Ring``."""
        self._forget(sequence)
        for peer in self._peers:
            peer.control.send([encode(Free(self._epoch, sequence))])

    def stage_stats(self) -> list[StageStats]:
        """See ``Ring``."""
        return [peer.stats for peer in self._peers]

    def close(self) -> None:
        """See ``Ring``."""
        for peer in self._peers:
            peer.control.send([encode(Detach(self._epoch))])
            peer.control.close(linger_s=0.5)
        for link in self._links:
            link.close()
        self._context.term()

    def _receive(self, link: Link) -> None:
        index = next((i for i, peer in enumerate(self._peers) if peer.control is link), None)
        try:
            for _ in range(_MOST_A_TURN):
                if (frames := link.receive()) is None:
                    return
                message = decode(frames[0])
                check_speaker(message, "control" if index is not None else "data", "stage")
                if index is None and isinstance(message, Hidden | Batch):
                    self._returned(message, frames[1:])
                elif index is not None:
                    self._heard(index, message)
        except RemoteProtocolError as error:
            where = self.stages[-1] if index is None else self.stages[index]
            self._fail(StageLost(f"{where} broke the protocol: {error}"))

    def _returned(self, message: Hidden | Batch, tensor: list[memoryview]) -> None:
        sent = self._outstanding.get(message.step)
        if message.epoch != self._epoch or sent is None:
            return  # a sequence that was cancelled meanwhile
        if sent.overtaken_s or not sent.is_answered_by(message):
            raise RemoteProtocolError("an answer to a step that was answered already, or to another one")
        if message.width != self._width or len(message.compute_us) != len(self._peers):
            raise RemoteProtocolError("a result of another shape than was asked for")
        hidden = codec.decode(tensor, message.rows, message.width, message.dtype, message.codec)
        self._progress_s = time.monotonic()
        self._overtake(message)
        self._events.append(returned(message, hidden, sent.step.positions_each, time.perf_counter() - sent.sent_s))

    def _overtake(self, message: Hidden | Batch) -> None:
        """Note that no other answer to this step, and none to an earlier one, will come."""
        came = message.sequences if isinstance(message, Batch) else (message.sequence,)
        self._outstanding[message.step].awaited.difference_update(came)
        for number, sent in list(self._outstanding.items()):
            if number > message.step:
                break
            sent.overtaken_s = sent.overtaken_s or self._progress_s
            if not sent.awaited:
                del self._outstanding[number]

    def _heard(self, index: int, message: Message) -> None:
        peer = self._peers[index]
        match message:
            case Pong(epoch=self._epoch):
                peer.heard_s, peer.busy_us = time.monotonic(), message.busy_us
                peer.stats = StageStats(message.sequences, message.kv_bytes, message.frames, message.dropped)
                if not message.known:
                    self._fail(StageLost(f"{self.stages[index]} has forgotten this chat: it was restarted or asleep"))
            case Fault(epoch=self._epoch):
                self._forget(message.sequence)
                if message.stage == index + 1 < len(self.stages):
                    self._fail(StageLost(f"{self.stages[message.stage]} is gone: {message.reason}"))
                    return
                error = StageFault(f"{self.stages[index]} failed: {message.reason}")
                self._events.append(Failed(message.sequence, error))
            case Refused():
                raise RemoteProtocolError(message.reason)

    def _forget(self, sequence: int) -> None:
        for number, sent in list(self._outstanding.items()):
            sent.awaited.discard(sequence)
            if not sent.awaited:
                del self._outstanding[number]

    def _ping(self) -> None:
        now = time.monotonic()
        if now - self._pinged_s >= PING_S:
            self._pinged_s = now
            for link in self._links:
                link.enforce_limits()
            for index, peer in enumerate(self._peers):
                peer.unsent = 0 if peer.control.send([encode(Ping(self._epoch))]) else peer.unsent + 1
                if peer.unsent >= GONE_PINGS:
                    self._fail(StageLost(f"{self.stages[index]} is gone: its connection is closed"))

    def _forgive_sleep(self) -> None:
        """Do not blame the stages for the time in which this process itself did not run."""
        now = time.monotonic()
        gap_s = now - self._polled_s
        self._polled_s = now
        if gap_s > 2 * PING_S:
            self._progress_s += gap_s
            for peer in self._peers:
                peer.heard_s += gap_s
            for sent in self._outstanding.values():
                sent.overtaken_s += gap_s if sent.overtaken_s else 0.0

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for index, peer in enumerate(self._peers):
            if now - peer.heard_s > LOST_S:
                self._fail(StageLost(f"{self.stages[index]} stopped answering"))
        if self._outstanding:
            oldest = next(iter(self._outstanding.values()))
            silent_s = now - self._progress_s
            if silent_s > min(max(STEP_S, 4 * oldest.expected_s), MOST_STEP_S):
                self._fail(self._blame(silent_s))
            elif oldest.overtaken_s and now - oldest.overtaken_s > STEP_S:
                self._fail(StageLost(f"{self.stages[-1]} left out a part of an answer: it was lost on the way"))

    def _blame(self, silent_s: float) -> StageError:
        busiest = max(range(len(self._peers)), key=lambda i: self._peers[i].busy_us)
        if self._peers[busiest].busy_us:
            return StageLost(f"{self.stages[busiest]} has been at one step for {silent_s:.0f} s and counts as wedged")
        return StageLost(
            f"nothing came back from {self.stages[-1]} for {silent_s:.0f} s although no stage is computing:"
            " a frame was lost on the way"
        )

    def _fail(self, error: StageError) -> None:
        if not self._failed:
            self._failed = True
            error.hint = error.hint or "check that machine, then ask again; `edgepp join` starts its stage anew"
            self._events.append(Failed(None, error))
