"""The links of a ring: each stage is told where the next one listens, and each link is measured.

The coordinator opens both of its links itself, also the one from the last stage, so it needs no open port.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import get_args

import zmq

from edgepp.cluster.discovery.network_paths import fastest_first
from edgepp.engine.held_reports import HeldReports
from edgepp.engine.plan_check import Expectation
from edgepp.engine.rebuild_plan import Holding
from edgepp.engine.stage_handshake import ANSWER_S, Peer, RingIdentity, StageUnreached, ask, blaming, receive_answer
from edgepp.errors import PlanError, RemoteProtocolError, StageLost
from edgepp.wire import codec
from edgepp.wire.field_types import LinkCodec
from edgepp.wire.link_rate import PROBE_BYTES, Echoes, measure_echo, measure_link
from edgepp.wire.messages import max_data_frame_bytes, max_result_frame_bytes
from edgepp.wire.messages.control import Attach, Attached, Refused, Unreached
from edgepp.wire.messages.recovery import Held
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.transport import Link

ATTACH_S = 10.0
"""Seconds that a stage may take to attach: to reach the next stage and measure the link to it."""
MAX_ADDRESSES = 8
"""Addresses of one stage that the stage before it is told to try."""


class RingLinks:
    """The coordinator's data links into the first stage and from the last one; one link where these are the same.

    ``hops_s`` holds the one-way seconds of the link into each stage, the last with the way back; ``bytes_per_s`` the
    rate of the link into each stage, 0 where unknown.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        peers: Sequence[Peer],
        codecs: Sequence[LinkCodec],
        expected: Expectation,
        keys: KeyPair | None,
        former: RingIdentity | None = None,
        *,
        keep_copies: bool = False,
    ) -> None:
        """Prepare to join ``peers``, first stage to last, of the ``expected`` model.

        Stages that were part of the ``former`` ring bring their sequences along. To ``keep_copies``, each stage sends
        those of its keys and values to the next one, and the last stage to the first.

        Raises:
            PlanError: ``codecs`` names neither one codec for all links nor one for each.
        """
        self._context, self._peers, self._expected, self._keys = context, peers, expected, keys
        self._width = expected.hidden_size
        self._former, self._keep_copies = former, keep_copies and len(peers) > 1
        self.codecs = _codec_per_link(codecs, len(peers))
        self.opened: list[Link] = []
        self._reports = HeldReports()
        self.hops_s = [0.0] * len(peers)
        self.bytes_per_s = [0] * len(peers)
        self.back_s = 0.0
        """One-way seconds of the way back, which is part of the last hop."""

    @property
    def ways_s(self) -> list[float]:
        """One-way seconds of one hidden state into each stage, without the way back."""
        return [hop_s - back_s for hop_s, back_s in zip(self.hops_s, self.backs_s, strict=True)]

    @property
    def backs_s(self) -> list[float]:
        """The part of each of ``hops_s`` that is the way back."""
        return [*[0.0] * (len(self.hops_s) - 1), self.back_s]

    @property
    def holdings(self) -> list[Holding]:
        """What the stages brought along from the former ring."""
        return self._reports.holdings

    @property
    def into_first(self) -> Link:
        """The link that carries steps to the first stage."""
        return self.opened[-1]

    @property
    def from_last(self) -> Link:
        """The link that brings results from the last stage."""
        return self.opened[0]

    def join(self, epoch: int) -> None:
        """Attach the stages for ``epoch``, last to first, so that each finds the next one listening; measure all links.

        Raises:
            PlanError: a stage has no address that the stage before it can reach.
            StageLost: a stage does not answer, or cannot reach the next one.
        """
        peers, last = self._peers, len(self._peers) - 1
        route = b"c" + secrets.token_bytes(15)
        with blaming(peers[-1].endpoint):
            back = self._open(peers[-1], route)
        with blaming(peers[0].endpoint):
            there = self._open(peers[0]) if last else back
        for i in range(last, -1, -1):
            with blaming(peers[i].endpoint):
                attached = self._attach(i, epoch, route, back.bytes_per_s if i == last else 0)
            if i < last:
                self.hops_s[i + 1] = attached.echo_us / 2e6
                self.bytes_per_s[i + 1] = attached.bytes_per_s
        self.back_s = back.short_s / 2
        self.hops_s[-1] += self.back_s
        self.hops_s[0] += there.short_s / 2
        self.bytes_per_s[0] = there.bytes_per_s

    def reconnects(self, index: int) -> int:
        """Connections from the coordinator to a stage that were made again after one had ended."""
        links = [self._peers[index].control]
        if index == 0:
            links.append(self.into_first)
        if index == len(self._peers) - 1 and self.opened[0] is not links[-1]:
            links.append(self.opened[0])
        return sum(link.traffic.reconnects for link in links)

    def close(self) -> None:
        """Close the coordinator's links."""
        for link in self.opened:
            link.close()

    def _open(self, peer: Peer, route: bytes | None = None) -> Echoes:
        """Open the link to ``peer`` by the fastest path, and wait until it is connected; the echoes over it."""
        protection = pinned(self._keys, peer.endpoint.key)
        longest = max_data_frame_bytes(self._width)
        if peer.welcome.has_head:
            longest = max_result_frame_bytes(self._width, self._expected.vocabulary)
        sizes = self._echo_sizes(peer)
        ordered = fastest_first(self._context, peer.data_addresses, protection, sizes)
        link = Link(self._context, ordered.addresses[0], longest, route, protection)
        self.opened.append(link)
        try:
            if ordered.echoes is None:
                echoes = measure_link(link, sizes, ANSWER_S)
            else:
                echoes = ordered.echoes if measure_echo(link, sizes[0], ANSWER_S, rounds=1) is not None else None
        except RemoteProtocolError as error:
            raise StageLost(f"{peer} cannot be understood: {error}") from error
        if echoes is None:
            raise StageUnreached(
                peer.endpoint,
                f"the data port {link.address} of {peer} does not answer",
                "a node uses two neighbouring ports: open both in its firewall",
            )
        return echoes

    def _attach(self, index: int, epoch: int, route: bytes, return_bytes_per_s: int) -> Attached:
        peer = self._peers[index]
        addresses, next_key, keeper_addresses, keeper_key, copies_from = "", "", "", "", ""
        if index + 1 < len(self._peers):
            following = self._peers[index + 1]
            addresses, next_key = addresses_for(peer, following), following.endpoint.key
        if self._keep_copies:
            keeper = self._peers[(index + 1) % len(self._peers)]
            keeper_addresses, keeper_key = addresses_for(peer, keeper), keeper.endpoint.key
            copies_from = self._peers[index - 1].endpoint.key
        inherits = self._former is not None and peer.process in self._former.processes
        message = Attach(
            epoch=epoch,
            stage=index,
            previous_key=self._previous_key(index),
            next_addresses=addresses,
            next_key=next_key,
            route=route.hex(),
            codec=self.codecs[index + 1],
            return_bytes_per_s=return_bytes_per_s,
            inherits=self._former.epoch if self._former is not None and inherits else 0,
            keeper_addresses=keeper_addresses,
            keeper_key=keeper_key,
            copies_from=copies_from,
            keeps_copies=self._keep_copies,
        )
        answer = ask(peer.control, message, ATTACH_S, str(peer))
        until_s = time.monotonic() + ATTACH_S
        while isinstance(answer, Held):
            try:
                self._reports.add(index, answer)
            except RemoteProtocolError as error:
                raise StageLost(f"{peer} broke the protocol: {error}") from error
            answer = receive_answer(peer.control, max(0.0, until_s - time.monotonic()), str(peer))
        if isinstance(answer, Attached):
            return answer
        if isinstance(answer, Unreached) and index + 1 < len(self._peers):
            following = self._peers[index + 1]
            port, where = following.welcome.data_port, following.welcome.node
            raise StageUnreached(
                following.endpoint,
                f"{peer} cannot reach port {port} of {following}: {answer.reason}",
                f"allow edgepp in the firewall of {where}: its port {port} has to be open for {peer.welcome.node}",
                sender=peer.endpoint,
            )
        reason = answer.reason if isinstance(answer, Refused) else f"it answered {type(answer).__name__}"
        raise StageLost(f"{peer} cannot join: {reason}", "check that address, and the firewall between the two")

    def _previous_key(self, index: int) -> str:
        """The key that the sender of a stage's frames proves to the stage; empty where the stage is not encrypted."""
        if self._keys is None or not self._peers[index].endpoint.key:
            return ""
        return self._peers[index - 1].endpoint.key if index else self._keys.public

    def _echo_sizes(self, peer: Peer) -> tuple[int, int]:
        """Bytes of one hidden state, and of the long echo that measures a rate."""
        row = self._width * codec.DTYPES[peer.welcome.dtype].itemsize
        return row, min(PROBE_BYTES, max_data_frame_bytes(self._width))


def _codec_per_link(codecs: Sequence[LinkCodec], stages: int) -> list[LinkCodec]:
    links = stages + 1
    spread = list(codecs) * links if len(codecs) == 1 else list(codecs)
    if len(spread) != links or not set(spread) <= set(get_args(LinkCodec)):
        raise PlanError(
            f"{stages} stages have {links} links; '{','.join(codecs)}' does not name a codec for each",
            f"give one codec for all, or {links} separated by commas, of {', '.join(get_args(LinkCodec))}",
        )
    return spread


def addresses_for(peer: Peer, following: Peer) -> str:
    """Addresses at which ``peer`` may reach the stage that follows, separated by commas."""
    addresses = following.data_addresses
    if not peer.address.is_loopback:
        addresses = tuple(address for address in addresses if not address.is_loopback)
    if not addresses:
        raise PlanError(
            f"{peer} cannot reach {following}, which only this machine can reach",
            "restart that one with --listen and its address on your network, and give that to --peer",
        )
    return ",".join(map(str, addresses[:MAX_ADDRESSES]))
