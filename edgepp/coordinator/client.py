"""A cluster as a chat sees it: found, asked, listened to. Every wait has an end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import zmq

from edgepp.cluster.discovery.coordinator_addresses import coordinator_addresses, may_move
from edgepp.cluster.discovery.mdns import discover
from edgepp.cluster.identity import Cluster, Identity, load_cluster, load_identity, remember_address
from edgepp.coordinator.json_codec import Prompt, decode_summary, encode_question, read_stages
from edgepp.engine.request import FinishReason, GenerateOptions, Timing
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.errors import EdgeppError, PairingError, PeerLost, RemoteProtocolError, StageFault
from edgepp.wire.field_types import Verb
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, decode_payload, encode, encode_payload
from edgepp.wire.messages import (
    MAX_PAYLOAD_BYTES,
    Answered,
    Ask,
    Call,
    Cancel,
    Declined,
    Message,
    Piece,
    Reply,
    Waiting,
)
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Address, Link

HERE_S = 1.0
"""How long a remembered address has to answer."""
DISCOVER_S = 2.0
"""How long the network is listened to for the coordinator."""
SILENT_S = 5.0
"""A coordinator that says nothing for so long is lost; it speaks every second."""
_POLL_S = 0.2


class CoordinatorClient:
    """A connection to a cluster's coordinator. Belongs to one thread."""

    def __init__(self, identity: Identity, cluster: Cluster, peers: Sequence[Address] = ()) -> None:
        """Find the coordinator.

        Raises:
            PairingError: it does not admit this machine.
            PeerLost: it is nowhere to be found.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._numbers = itertools.count(1)
        self._lost: EdgeppError | None = None
        try:
            self._link, self.status, self.stages = self._find(identity, cluster, peers)
        except EdgeppError:
            self._context.term()
            raise
        self._cancelled: Mailbox[int] = Mailbox()
        self._poller = Poller[int](self._link, self._cancelled)
        remember_address(cluster.id, self._link.address)

    @property
    def model(self) -> str:
        """The name of the model that the cluster runs."""
        return str(self.status["model"])

    @property
    def lost(self) -> EdgeppError | None:
        """Why the coordinator answers no more; None while it does."""
        return self._lost

    @property
    def address(self) -> Address:
        """Where the coordinator was reached."""
        return self._link.address

    def call(self, verb: Verb, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the coordinator itself something.

        Raises:
            EdgeppError: it declined, with its reason.
            PeerLost: it does not answer.
        """
        number = next(self._numbers)
        self.send([encode(Call(number, verb)), encode_payload(arguments or {})])
        for message, frames in self.listen():
            if isinstance(message, Reply) and message.request_id == number:
                return decode_payload(frames)
            if isinstance(message, Declined) and message.request_id == number:
                raise EdgeppError(message.reason, message.hint)
        raise PeerLost("the coordinator was closed")

    def ask(self, prompt: Prompt, options: GenerateOptions) -> RemoteAnswer:
        """See ``Pipeline.ask``; what is wrong with the question is said when the answer is read."""
        number = next(self._numbers)
        self.send([encode(Ask(number)), encode_payload(encode_question(prompt, options))])
        return RemoteAnswer(self, number)

    def cancel(self, number: int) -> None:
        """Stop an answer that is being listened to. Safe from any thread; an answer that has ended stays as it is."""
        with suppress(OSError):
            self._cancelled.put(number)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a message to the coordinator.

        Raises:
            PeerLost: it is gone.
        """
        if not self._link.send(frames, SILENT_S):
            self._fail("is gone: its connection is closed")

    def listen(self) -> Iterator[tuple[Message, list[memoryview]]]:
        """What the coordinator sends, for as long as it does.

        Raises:
            PeerLost: nothing comes for ``SILENT_S`` seconds.
        """
        heard_s = time.monotonic()
        while True:
            self._poller.wait(_POLL_S)
            for number in self._cancelled.drain():
                self.send([encode(Cancel(number))])
            frames = self._link.receive()
            now_s = time.monotonic()
            if frames is not None:
                heard_s = now_s
                try:
                    yield decode(frames[0]), frames
                except RemoteProtocolError as error:
                    self._fail(f"cannot be understood: {error}")
            elif now_s - heard_s > SILENT_S:
                self._fail(f"has said nothing for {SILENT_S:.0f} s")

    def close(self) -> None:
        """Disconnect."""
        self._link.close(linger_s=0.5)
        self._cancelled.close()
        self._context.term()

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fail(self, what: str) -> None:
        self._lost = PeerLost(
            f"the coordinator at {self._link.address} {what}", "is `edgepp serve` running there? `edgepp doctor` checks"
        )
        raise self._lost

    def _find(
        self, identity: Identity, cluster: Cluster, peers: Sequence[Address]
    ) -> tuple[Link, dict[str, Any], tuple[StageInfo, ...]]:
        """A link to the coordinator, the cluster's state, and the stages that the state names."""
        protection = Pinned(identity.keys, cluster.coordinator.key)
        known = coordinator_addresses(cluster, peers, ())
        looks: list[Callable[[], list[Address]]] = [lambda: known]
        if cluster.coordinator.node != identity.node and may_move(known):
            looks.append(
                lambda: coordinator_addresses(
                    cluster, (), discover(lambda record: record.cluster == cluster.id, DISCOVER_S)
                )
            )
        hello = Call(0, "status")
        failure: EdgeppError = PeerLost("no coordinator was found")
        for look in looks:
            addresses = look()
            if not addresses:
                continue
            try:
                link, frames = connect_first(
                    self._context, addresses, hello, HERE_S, MAX_PAYLOAD_BYTES, protection, encode_payload({})
                )
            except PeerLost as error:
                failure = error
                continue
            try:
                message = decode(frames[0])
                if isinstance(message, Reply):
                    status = decode_payload(frames)
                    return link, status, read_stages(status)
                raise RemoteProtocolError(getattr(message, "reason", f"it answered {type(message).__name__}"))
            except RemoteProtocolError as error:
                link.close()
                raise PeerLost(f"the coordinator at {link.address} cannot be used: {error}") from error
        raise PeerLost(
            f"the coordinator of this machine's cluster, {cluster.coordinator.name}, cannot be found: {failure}",
            "is `edgepp serve` running there? Name its address with --peer HOST:PORT, or run `edgepp doctor`",
        )


def connect_coordinator(peers: Sequence[Address] = ()) -> CoordinatorClient:
    """A connection to this machine's cluster.

    Raises:
        PairingError: it belongs to none, or is not admitted.
        PeerLost: the coordinator is not to be found.
    """
    cluster = load_cluster()
    if cluster is None:
        raise PairingError(
            "this machine belongs to no cluster",
            "start one with `edgepp serve`, or join one with `edgepp join CODE`",
        )
    return CoordinatorClient(load_identity(), cluster, peers)


class RemoteAnswer:
    """See ``Answer``: iterate over it once for the text; then the rest is known."""

    def __init__(self, served: CoordinatorClient, number: int) -> None:
        self._served = served
        self._number = number
        self.waiting = ""
        """What the answer waits for, as the coordinator said last; empty where nothing keeps it from beginning."""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = 0
        self.timing = Timing(0.0)
        self.sampled: list[Sampled] = []
        self.spelled: Mapping[int, str] = {}
        self.stages: tuple[StageInfo, ...] = served.stages

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come.

        Raises:
            EdgeppError: the answer cannot be finished; what was yielded so far stands.
        """
        if self.finish_reason is not None:
            return
        for message, frames in self._served.listen():
            match message:
                case Waiting(request_id=self._number):
                    self.waiting = message.reason
                    continue
                case Piece(request_id=self._number):
                    self.waiting = ""
                    self.token_ids += message.tokens
                    if len(frames) == 2 and (text := str(frames[1], "utf-8", "replace")):
                        yield text
                case Declined(request_id=self._number):
                    raise StageFault(message.reason, message.hint)
                case Answered(request_id=self._number):
                    outcome = decode_summary(decode_payload(frames))
                    self.finish_reason, self.prompt_tokens = outcome.finish_reason, outcome.prompt_tokens
                    self.timing, self.stages, self.sampled = outcome.timing, outcome.stages, list(outcome.sampled)
                    self.spelled = outcome.spelled
                    return

    def cancel(self) -> None:
        """Stop generating; iterating on gives what came before. Safe from any thread."""
        self._served.cancel(self._number)
