"""The client of a coordinator: finds it, calls it, asks questions, and reads answers. Every wait has a deadline."""

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
from edgepp.coordinator.json_codec import decode_stages, decode_summary, encode_question
from edgepp.engine.request import FinishReason, GenerateOptions
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import TextPiece
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError, PairingError, PeerLost, RemoteProtocolError, StageFault
from edgepp.model.text.conversation import Prompt
from edgepp.tracing.trace_view import TraceView, processes_of
from edgepp.tracing.view_json import decode_view
from edgepp.wire.address import Address
from edgepp.wire.field_types import Verb
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, decode_payload, encode, encode_payload
from edgepp.wire.messages import MAX_PAYLOAD_BYTES, Message
from edgepp.wire.messages.clients import Answered, Ask, Call, Cancel, Declined, Piece, Reply, Waiting
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Link

CONNECT_S = 3.0
"""How long the known addresses have to answer."""
DISCOVER_S = 2.0
"""How long to search the network for the coordinator."""
COORDINATOR_SILENT_S = 5.0
"""A coordinator that sends nothing for this time during an answer is lost; it sends something every second."""
_POLL_S = 0.2


class CoordinatorClient:
    """A connection to a cluster's coordinator. Belongs to one thread."""

    def __init__(self, identity: Identity, cluster: Cluster, peers: Sequence[Address] = ()) -> None:
        """Find the coordinator of ``cluster`` at ``peers``, remembered addresses, or by multicast DNS, and connect.

        Raises:
            PairingError: the coordinator does not admit this machine.
            PeerLost: no coordinator is found.
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
    def address(self) -> Address:
        """The coordinator's address."""
        return self._link.address

    def call(self, verb: Verb, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call the coordinator; returns its reply.

        Raises:
            EdgeppError: the coordinator declines, with its reason.
            PeerLost: the coordinator does not answer.
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
        """Send a question; errors are raised when the answer is read.

        Raises:
            PeerLost: the coordinator is lost.
        """
        number = next(self._numbers)
        self.send([encode(Ask(number)), encode_payload(encode_question(prompt, options))])
        return RemoteAnswer(self, number)

    def trace(self, request: str) -> TraceView:
        """The trace of a recent request by its id, whole.

        Raises:
            EdgeppError: the coordinator keeps no such trace, or may not tell it.
            PeerLost: the coordinator does not answer.
        """
        whole = decode_view(self.call("trace", {"request": request}))
        part = whole
        while part.next is not None:
            part = decode_view(self.call("trace", {"request": request, "first": part.next}))
            whole.spans += part.spans
            whole.events += part.events
            whole.processes = processes_of(whole.processes, part.processes)
        whole.next = None
        return whole

    def cancel(self, number: int) -> None:
        """Stop the answer to question ``number``; no effect on one that has ended. Safe from any thread."""
        with suppress(OSError):
            self._cancelled.put(number)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a message to the coordinator.

        Raises:
            PeerLost: the connection is closed.
        """
        if not self._link.send(frames, COORDINATOR_SILENT_S):
            self._fail("is gone: the connection is closed")

    def listen(self) -> Iterator[tuple[Message, list[memoryview]]]:
        """The coordinator's messages, each with its frames, as they arrive.

        Raises:
            PeerLost: nothing arrives for ``COORDINATOR_SILENT_S`` seconds.
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
                    self._fail(f"sent a malformed message: {error}")
            elif now_s - heard_s > COORDINATOR_SILENT_S:
                self._fail(f"has sent nothing for {COORDINATOR_SILENT_S:.0f} s")

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
        searches: list[Callable[[], list[Address]]] = [lambda: known]
        if cluster.coordinator.node != identity.node and may_move(known):
            searches.append(
                lambda: coordinator_addresses(
                    cluster, (), discover(lambda heard: heard.cluster == cluster.id, DISCOVER_S)
                )
            )
        hello = Call(0, "status")
        failure: EdgeppError = PeerLost("no coordinator was found")
        for search in searches:
            addresses = search()
            if not addresses:
                continue
            try:
                link, frames = connect_first(
                    self._context, addresses, hello, CONNECT_S, MAX_PAYLOAD_BYTES, protection, encode_payload({})
                )
            except PeerLost as error:
                failure = error
                continue
            try:
                message = decode(frames[0])
                if isinstance(message, Reply):
                    status = decode_payload(frames)
                    return link, status, decode_stages(status)
                raise RemoteProtocolError(getattr(message, "reason", f"its answer is {type(message).__name__}"))
            except RemoteProtocolError as error:
                link.close()
                raise PeerLost(f"the coordinator at {link.address} cannot be used: {error}") from error
        raise PeerLost(
            f"the coordinator of this machine's cluster, {cluster.coordinator.name}, cannot be found: {failure}",
            "is `edgepp serve` running there? Give its address with --peer HOST:PORT, or run `edgepp doctor`",
        )


def connect_coordinator(peers: Sequence[Address] = ()) -> CoordinatorClient:
    """Connect to the coordinator of this machine's cluster.

    Raises:
        PairingError: this machine belongs to no cluster, or is not admitted.
        PeerLost: no coordinator is found.
    """
    cluster = load_cluster()
    if cluster is None:
        raise PairingError(
            "this machine belongs to no cluster",
            "start one with `edgepp serve`, or join one with `edgepp join CODE`",
        )
    return CoordinatorClient(load_identity(), cluster, peers)


class RemoteAnswer:
    """An answer from a coordinator: iterate over it once for its text; the other attributes are complete afterwards."""

    def __init__(self, client: CoordinatorClient, number: int) -> None:
        self._client = client
        self._number = number
        self.waiting = ""
        """What the answer waits for; empty once it has begun."""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = 0
        self.timing = Timing(0.0)
        self.sampled: list[Sampled] = []
        self.prompt_sampled: list[Sampled] = []
        self.spelled: Mapping[int, str] = {}
        self.stop_string: str | None = None
        self.stages: tuple[StageInfo, ...] = client.stages
        self.request_id = ""
        """The name of the request in logs and traces; known at the end."""

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they arrive.

        Raises:
            EdgeppError: the answer cannot be finished; the text so far stays valid.
        """
        if self.finish_reason is not None:
            return
        for message, frames in self._client.listen():
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
                    summary = decode_summary(decode_payload(frames))
                    self.finish_reason, self.prompt_tokens = summary.finish_reason, summary.prompt_tokens
                    self.timing, self.stages, self.sampled = summary.timing, summary.stages, list(summary.sampled)
                    self.spelled, self.stop_string = summary.spelled, summary.stop_string
                    self.request_id, self.prompt_sampled = summary.request_id, list(summary.prompt_sampled)
                    return

    def pieces(self) -> Iterator[TextPiece]:
        """The same as pieces without tokens."""
        return map(TextPiece, self)

    def cancel(self) -> None:
        """Stop generating: the iteration ends after the text so far. Safe from any thread."""
        self._client.cancel(self._number)
