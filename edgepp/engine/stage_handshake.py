"""The first exchange with each stage, and who is to blame where it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import zmq

from edgepp.engine.ring import StageInfo, StageStats
from edgepp.engine.same_weights import Holder
from edgepp.errors import EdgeppError, PeerLost, PlanError, RemoteProtocolError, StageLost
from edgepp.layer_range import LayerRange
from edgepp.tracing.clock_offset import ClockOffset
from edgepp.wire.address import Address
from edgepp.wire.frame_marks import clock_us
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_CONTROL_FRAME_BYTES, Message
from edgepp.wire.messages.control import Hello, Pong, Refused, Welcome
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.transport import Link

ANSWER_S = 5.0
"""Seconds without an answer to a greeting after which a node counts as absent."""
MAX_GREETINGS = 16
"""Stages that are greeted at the same time."""

_NO_STATS = StageStats(0, 0, 0, 0)


@dataclass(frozen=True)
class Endpoint:
    """The addresses of a stage's control socket, and its node's public key; without a key, nothing is encrypted."""

    addresses: tuple[Address, ...]
    key: str = ""


class StageUnreached(StageLost):
    """Nothing answers where a stage is to listen."""

    def __init__(self, endpoint: Endpoint, message: str, hint: str, sender: Endpoint | None = None) -> None:
        super().__init__(message, hint)
        self.endpoint = endpoint
        """Where nothing answers."""
        self.sender = sender
        """The stage that cannot reach ``endpoint``, as the coordinator can; None where the coordinator cannot."""

    @property
    def link(self) -> tuple[Endpoint | None, Endpoint]:
        """Both ends of the link that cannot be made, the sending one first."""
        return self.sender, self.endpoint


class StageUnusable(StageUnreached):
    """Something else answers where a stage of a cluster is to listen, or a stage that does not fit the pipeline."""


@contextmanager
def blaming(endpoint: Endpoint) -> Iterator[None]:
    """Blame the stage at ``endpoint`` for an error, if it is a cluster's: the cluster can do without its node.

    Raises:
        StageUnusable: an ``EdgeppError`` was raised, which did not name a stage or link yet.
    """
    try:
        yield
    except StageUnreached:
        raise
    except EdgeppError as error:
        if not endpoint.key:
            raise
        raise StageUnusable(endpoint, str(error), error.hint) from error


@dataclass(frozen=True)
class RingIdentity:
    """Identity of a ring, by which the ring that replaces it recognises the stages."""

    epoch: int
    processes: frozenset[tuple[str, int, int]]
    """Node key, process id and data port of each stage."""


@dataclass
class Peer:
    """A stage, as the coordinator sees it over the control link."""

    address: Address
    control: Link
    welcome: Welcome
    endpoint: Endpoint
    heard_s: float = 0.0
    """When the stage last answered a ping, in monotonic seconds."""
    busy_us: int = 0
    """Microseconds that the stage had been computing its current step at that time; 0 if idle."""
    stats: StageStats = _NO_STATS
    clock: ClockOffset = field(default_factory=ClockOffset)
    """How the stage's clock differs from this one's, by the answers to pings."""

    def take(self, pong: Pong, reconnects: int, now_s: float) -> None:
        """Take the stage's answer to a ping. ``reconnects`` counts the coordinator's connections made again."""
        self.heard_s, self.busy_us = now_s, pong.busy_us
        self.clock.add(pong.asked_us, pong.received_us, pong.answered_us, clock_us())
        self.stats = StageStats(
            pong.sequences,
            pong.kv_bytes,
            pong.frames,
            pong.dropped,
            pong.received_bytes,
            pong.sent_bytes,
            pong.reconnects + reconnects,
            void=pong.void,
        )

    def info(self, index: int, hop_s: float, back_s: float, bytes_per_s: float) -> StageInfo:
        """The stage as number ``index`` of a ring, with what was measured of the link into it."""
        welcome = self.welcome
        return StageInfo(
            index=index,
            layers=self.layers,
            node=welcome.node,
            address=str(self.address),
            pid=welcome.pid,
            backend=welcome.backend,
            device=welcome.device,
            chunk=welcome.chunk,
            context=welcome.context,
            prefill_s=welcome.prefill_us / 1e6,
            decode_s=welcome.decode_us / 1e6,
            rewinds=welcome.rewinds,
            has_head=welcome.has_head,
            hop_s=hop_s,
            back_s=back_s,
            bytes_per_s=float(bytes_per_s),
        )

    @property
    def layers(self) -> LayerRange:
        """The layers that the stage holds."""
        return LayerRange(self.welcome.start, self.welcome.stop)

    @property
    def process(self) -> tuple[str, int, int]:
        """What tells the stage process from all others: node key, process id and data port."""
        return self.endpoint.key, self.welcome.pid, self.welcome.data_port

    @property
    def data_addresses(self) -> tuple[Address, ...]:
        """Addresses of the data socket for other stages to try, first the one that answered the coordinator."""
        hosts = dict.fromkeys((self.address.host, *(address.host for address in self.endpoint.addresses)))
        return tuple(Address(host, self.welcome.data_port) for host in hosts)

    @property
    def holder(self) -> Holder:
        """The stage's model folder."""
        return Holder(str(self), self.welcome.folder, self.welcome.weights)

    def __str__(self) -> str:
        return f"the stage with layers {self.layers} on node {self.welcome.node} at {self.address}"


def ask(link: Link, message: Message, wait_s: float, what: str) -> Message:
    """Send ``message`` and wait up to ``wait_s`` seconds for its answer; ``what`` names the stage in errors.

    Raises:
        StageLost: there is no answer, or it cannot be decoded.
    """
    if not link.send([encode(message)], wait_s):
        raise StageLost(f"no edgepp node answers at {link.address}", "is `edgepp join` running there?")
    return receive_answer(link, wait_s, what)


def receive_answer(link: Link, wait_s: float, what: str) -> Message:
    """The next message of a stage, within ``wait_s`` seconds; ``what`` names the stage in errors.

    Raises:
        StageLost: there is no message, or it cannot be decoded.
    """
    try:
        frames = link.receive(wait_s)
        if frames is not None:
            return decode(frames[0])
    except RemoteProtocolError as error:
        raise StageLost(f"{what} at {link.address} cannot be understood: {error}") from error
    raise StageLost(f"{what} at {link.address} does not answer", "is it busy, stopped, or another program?")


def greet(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: Endpoint,
    node: str,
    keys: KeyPair | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Peer:
    """Connect to the stage at ``endpoint``; this machine introduces itself as ``node``.

    Raises:
        StageUnreached: nothing answers there, before ``given_up()`` is true.
        StageUnusable: in a cluster, in place of all errors below.
        StageLost: the answer cannot be understood.
        PairingError: the stage does not admit this machine.
        PlanError: the answer is not that of a stage of the same edgepp.
    """
    with blaming(endpoint):
        try:
            link, frames = connect_first(
                context,
                endpoint.addresses,
                Hello(node),
                ANSWER_S,
                MAX_CONTROL_FRAME_BYTES,
                pinned(keys, endpoint.key),
                given_up=given_up,
            )
        except RemoteProtocolError as error:
            raise StageLost(f"the node at {endpoint.addresses[0]} cannot be understood: {error}") from error
        except PeerLost as error:
            raise StageUnreached(endpoint, str(error), error.hint) from error
        try:
            return _peer(link, frames, endpoint)
        except EdgeppError:
            link.close()
            raise


def greet_all(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoints: Sequence[Endpoint],
    node: str,
    keys: KeyPair | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> list[Peer]:
    """Greet the stages at all ``endpoints`` at the same time, as ``greet`` does; their peers in the same order.

    After an error, no link is left open.

    Raises:
        StageLost, PairingError, PlanError: as ``greet``, for the first of the endpoints that cannot be greeted.
    """
    with ThreadPoolExecutor(max(1, min(MAX_GREETINGS, len(endpoints))), "greet-stage") as pool:
        greetings = [pool.submit(greet, context, endpoint, node, keys, given_up) for endpoint in endpoints]
    errors = [error for greeting in greetings if (error := greeting.exception()) is not None]
    if not errors:
        return [greeting.result() for greeting in greetings]
    for greeting in greetings:
        if greeting.exception() is None:
            greeting.result().control.close()
    raise errors[0]


def _peer(link: Link, frames: Sequence[memoryview], endpoint: Endpoint) -> Peer:
    address = link.address
    try:
        answer = decode(frames[0])
    except RemoteProtocolError as error:
        raise StageLost(f"the node at {address} cannot be understood: {error}") from error
    if not isinstance(answer, Welcome):
        reason = answer.reason if isinstance(answer, Refused) else f"it answered {type(answer).__name__}"
        raise PlanError(f"the node at {address} cannot be used: {reason}", "run the same edgepp everywhere")
    return Peer(address, link, answer, endpoint)
