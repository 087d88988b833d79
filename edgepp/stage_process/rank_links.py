"""Links of one rank of a tensor-parallel stage with all other ranks: connecting, sending and receiving.

The links are encrypted where the stage has keys; CURVE also notices a damaged frame. Each rank proves the key of its
node, and knows which key every other rank has to prove. A rank that is gone, or breaks the protocol, never comes back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zmq

from edgepp.errors import ModelError, PeerLost, RemoteProtocolError
from edgepp.stage_process.rank_fit import misfit
from edgepp.stage_process.rank_inbox import RankInbox, Received
from edgepp.stage_process.rank_paths import begun_links, fastest_paths, return_echo
from edgepp.wire.address import Address
from edgepp.wire.mailbox import Mailbox, Poller, wait_awake
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message, max_result_frame_bytes
from edgepp.wire.messages.data import Echo
from edgepp.wire.messages.ranks import RankJoined
from edgepp.wire.permissions import check_speaker
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.transport import Link, Listener, Sender

JOIN_S = 60.0
"""Seconds in which all ranks must have connected."""
_JOIN_INTERVAL_S = 0.02
_CHECK_INTERVAL_S = 0.1
"""How often a waiting rank looks whether the others are still connected."""


class RankLost(PeerLost):
    """Another rank is gone, or broke the protocol: the group has ended."""

    def __init__(self, rank: int, message: str) -> None:
        """``rank`` is the other rank."""
        super().__init__(message)
        self.rank = rank


class RankLinks:
    """One rank's links with the others. All methods belong to one thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        group: int,
        rank: int,
        ranks: int,
        width: int,
        *,
        host: str = "127.0.0.1",
        keys: KeyPair | None = None,
        awake: bool = False,
        vocabulary: int = 0,
        folder: str = "",
        weights: Sequence[int] = (),
    ) -> None:
        """Listen on any free port of ``host`` for the other ``ranks`` of the stage with the id ``group``.

        ``width`` is the hidden size. ``keys`` are those of this rank; None, for plain links, is for one machine.
        ``awake``: whether to wait for messages without sleeping. ``vocabulary``: number of token ids whose logits the
        ranks send to rank 0; 0 for none. ``folder`` is that of this rank's model, and ``weights`` the digests of its
        weights.

        Raises:
            UsageError: ``host`` is not an address of this machine.
        """
        self.rank, self.ranks = rank, ranks
        self._context, self._group, self._keys, self._awake = context, group, keys, awake
        self._max_frame_bytes = max_result_frame_bytes(width, vocabulary)
        self._row_bytes = 4 * width
        self._listener = Listener(context, Address(host, 0), self._max_frame_bytes, keys)
        self._poller = Poller[None](self._listener)
        self._links: dict[int, Link] = {}
        self._peer_keys: Sequence[str] = ()
        """Public key of each rank, by rank; empty texts without encryption."""
        self._rank_of: dict[bytes, int] = {}
        """Rank of each connection that has joined, by its route."""
        self._others = tuple(other for other in range(ranks) if other != rank)
        self._inbox = RankInbox(self._others)
        self._checked_s = 0.0
        self._hello = RankJoined(group, rank, folder, tuple(weights))
        self._misfit: ModelError | None = None
        """Why the ranks that have joined do not fit each other; None where they do."""

    @property
    def address(self) -> Address:
        """Address on which the other ranks connect."""
        return self._listener.address

    def connect(self, addresses: Sequence[Address]) -> None:
        """Connect to the other ranks, whose ``addresses`` are in rank order, and which have the keys of this one.

        Raises:
            PeerLost: they have not within ``JOIN_S``.
        """
        self._connect([[address] for address in addresses], ())

    def connect_told(self, told: Mapping[str, Any]) -> None:
        """Connect to the other ranks as the parent tells: ``ranks`` in rank order, and their ``keys``.

        An entry of ``ranks`` holds addresses that are separated by commas; that of this rank is not read. Without
        ``keys`` all ranks have those of this one.

        Raises:
            PeerLost: they have not within ``JOIN_S``.
            ModelError: one of them has other weights.
        """
        ranks = [[Address.parse(one) for one in filter(None, where.split(","))] for where in told["ranks"]]
        self._connect(ranks, told["keys"])

    def _connect(self, candidates: Sequence[Sequence[Address]], keys: Sequence[str]) -> None:
        """Connect to each other rank at one of its ``candidates``, where it proves its key of ``keys``.

        Both are in rank order. The fastest counts where several networks lead to a rank, else the first that answers.
        Waits until all other ranks have connected to this one too.
        """
        if not keys:
            keys = [self._keys.public if self._keys else ""] * self.ranks
        self._peer_keys = keys
        hello = encode(self._hello)
        until_s = time.monotonic() + JOIN_S
        pins = {other: pinned(self._keys, keys[other]) for other in self._others}
        ways = {other: candidates[other] for other in self._others}
        ways = fastest_paths(self._context, ways, pins, self._row_bytes, self._listen_awhile)
        trying = {other: begun_links(self._context, ways[other], self._max_frame_bytes, pins[other]) for other in ways}
        try:
            while len(self._links) < self.ranks - 1 or not self._all_joined:
                if time.monotonic() > until_s:
                    raise self._not_joined(candidates)
                for other in [other for other in trying if other not in self._links]:
                    reached = next((link for link in trying[other] if link.send([hello])), None)
                    if reached is not None:
                        self._links[other] = reached
                self._listen_awhile()
        finally:
            for other, links in trying.items():
                for link in links:
                    if link is not self._links.get(other):
                        link.close()
        if self._misfit is not None:  # not before every rank has heard why
            raise self._misfit

    @property
    def _all_joined(self) -> bool:
        """Whether all other ranks have connected to this one."""
        return len(set(self._rank_of.values())) == self.ranks - 1

    def _listen_awhile(self) -> None:
        self._poller.wait(_JOIN_INTERVAL_S)
        self._receive()

    def _not_joined(self, candidates: Sequence[Sequence[Address]]) -> PeerLost:
        for other in self._others:
            if other not in self._links:
                where = " or ".join(map(str, candidates[other])) or "no address"
                return RankLost(other, f"rank {other} of the stage does not answer at {where}")
        return PeerLost("not all ranks of the stage have connected")

    def send(self, rank: int, parts: Sequence[bytes | memoryview]) -> None:
        """Send a message to one rank.

        Raises:
            PeerLost: the rank is gone.
        """
        if not self._links[rank].send(parts):
            raise self.lost(rank)

    def send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send a message to all other ranks.

        Raises:
            PeerLost: one of them is gone.
        """
        for rank in self._links:
            self.send(rank, parts)

    def next_of(self, rank: int) -> Received:
        """The next message of a rank, awaited; messages of other ranks are kept.

        Raises:
            PeerLost: a rank is gone, or breaks the protocol.
        """
        for _ in self._turns(rank):
            continue
        return self._inbox.take(rank)

    def next_order(self, inbox: Mailbox[None]) -> Received | None:
        """The next message of rank 0, awaited; None as soon as ``inbox``, given to ``wake_on``, has something.

        Raises:
            PeerLost: a rank is gone, or breaks the protocol.
        """
        for ready in self._turns(0):
            if inbox in ready:
                return None
        return self._inbox.take(0)

    def wake_on(self, inbox: Mailbox[None]) -> None:
        """Let a wait end when ``inbox`` has something."""
        self._poller.add(inbox)

    def _turns(self, rank: int) -> Iterator[Sequence[object]]:
        """Wait until there is a message of a rank; yields what is ready each time that the wait is interrupted."""

        def has_come() -> bool:
            return self._inbox.has(rank) or (self._receive() and self._inbox.has(rank))

        if self._awake:
            wait_awake(has_come)
        while not self._inbox.has(rank):
            if self._receive():
                continue
            self.check_connected()
            yield self._poller.wait(_CHECK_INTERVAL_S)

    def check_connected(self) -> None:
        """Check, at most every ``_CHECK_INTERVAL_S``, that all ranks are connected.

        Raises:
            PeerLost: one of them is gone.
        """
        now_s = time.perf_counter()
        if now_s - self._checked_s < _CHECK_INTERVAL_S:
            return
        self._checked_s = now_s
        for rank, link in self._links.items():
            if not link.is_connected() or link.traffic.reconnects:
                raise self.lost(rank)

    def close(self) -> None:
        """Close all links."""
        while self._links:
            self._links.popitem()[1].close()
        self._listener.close()

    def _receive(self) -> bool:
        """Take one message that has arrived; False where none has. A message of a stranger is dropped.

        Raises:
            PeerLost: a rank sent what it may not send.
        """
        try:
            received = self._listener.receive()
        except RemoteProtocolError:  # of whom is not known; where a rank's message is lost, its next one shows that
            return True
        if received is None:
            return False
        sender, (header, *tensor) = received
        rank = self._rank_of.get(sender.route)
        try:
            message = decode(header)
            if rank is None:
                self._greet(sender, message, tensor)
                return True
            check_speaker(message, "ranks", "first rank" if rank == 0 else "rank")
        except RemoteProtocolError as error:
            if rank is not None:
                raise self.broken(rank, str(error)) from error
            return True
        if not self._inbox.put(rank, message, len(header), tensor):  # type: ignore[arg-type]  # others are not allowed here
            raise self.broken(rank, "it sends more than is asked for")
        return True

    def _greet(self, sender: Sender, message: Message, tensor: Sequence[memoryview]) -> None:
        """Take a connection into the group by its first message, or return an echo while ranks connect.

        Any other message of a stranger is ignored.
        """
        if isinstance(message, Echo) and not self._all_joined:
            check_speaker(message, "ranks", "guest")
            return_echo(self._listener, sender, message, tensor)
        if not isinstance(message, RankJoined) or message.group != self._group or message.rank not in self._others:
            return
        right_key = not self._keys or sender.key == self._peer_keys[message.rank]
        if right_key and message.rank not in self._rank_of.values():
            self._rank_of[sender.route] = message.rank
            self._misfit = self._misfit or misfit(message, self._hello)

    def lost(self, rank: int) -> RankLost:
        """The error that a rank is gone."""
        return RankLost(rank, f"rank {rank} of the stage has ended or is not reachable any more")

    def broken(self, rank: int, what: str) -> RankLost:
        """The error that a rank broke the protocol; ``what`` ends the sentence."""
        return RankLost(rank, f"rank {rank} of the stage broke the protocol: {what:.200}")
