"""What the stages of a ring hold, and the orders by which they rebuild sequences, as messages on control links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgepp.engine.held_reports import HeldReports
from edgepp.engine.rebuild_plan import Holding, Move, Refill
from edgepp.engine.rebuild_sharing import SharedStart
from edgepp.engine.ring_links import addresses_for
from edgepp.engine.stage_handshake import Peer, RingIdentity
from edgepp.engine.suspended_sequences import SuspendedSequence
from edgepp.errors import RemoteProtocolError
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.recovery import Expect, Held, Inventory, Push, Replay

_ALIVE_S = 3.0
"""Seconds since the last answer to a ping within which a stage counts as one that can give what it holds."""


class RebuildOrders:
    """The orders to the stages of one ring, all for positions from 0 on; ``Rebuilt`` or ``Fault`` comes back."""

    def __init__(self, epoch: int, peers: Sequence[Peer], holdings: Sequence[Holding]) -> None:
        """``holdings`` are what the ``peers`` brought along from the ring that this one replaces."""
        self._epoch, self._peers, self.holdings = epoch, peers, holdings
        self._inventory: HeldReports | None = None
        """What the stages reply to ``inspect``; None where they were not asked."""

    @property
    def identity(self) -> RingIdentity:
        """Identity of the ring, by which the ring that replaces it recognises the stages."""
        return RingIdentity(self._epoch, frozenset(peer.process for peer in self._peers))

    def inspect(self) -> None:
        """Ask all stages what they hold, for ``holdings_outside``; steps must have ended, or be given up."""
        self._inventory = HeldReports()
        for peer in self._peers:
            peer.control.send([encode(Inventory(self._epoch))])

    def note(self, stage: int, held: Held) -> None:
        """Take a stage's reply to ``inspect``.

        Raises:
            RemoteProtocolError: the stage was not asked, or reports more than a stage can hold.
        """
        if self._inventory is None:
            raise RemoteProtocolError("it says what it holds, and was not asked")
        self._inventory.add(stage, held)

    def holdings_outside(self, successor: RingIdentity, now_s: float) -> list[Holding]:
        """Holdings of stages that answer pings and are not part of ``successor``, numbered behind its stages."""
        first = len(successor.processes)
        outside = {
            index
            for index, peer in enumerate(self._peers)
            if peer.process not in successor.processes
            and peer.control.is_connected()
            and now_s - peer.heard_s < _ALIVE_S
        }
        inventory = self._inventory.holdings if self._inventory is not None else []
        return [replace(one, holder=first + one.holder) for one in inventory if one.holder in outside]

    def move(self, suspended: SuspendedSequence, length: int, move: Move, source: RebuildOrders, holder: int) -> None:
        """Let stage ``holder`` of the ring ``source`` send what ``move`` says of a sequence to a stage of this ring."""
        target, sender = self._peers[move.stage], source._peers[holder]
        expect = Expect(self._epoch, suspended.sequence, suspended.capacity, length, sender.endpoint.key)
        target.control.send([encode(expect)])
        push = Push(
            epoch=source._epoch,
            sequence=suspended.sequence,
            what=move.what,
            start_layer=move.layers.start,
            stop_layer=move.layers.stop,
            start=0,
            stop=length,
            addresses=addresses_for(sender, target),
            key=target.endpoint.key,
            to_epoch=self._epoch,
        )
        sender.control.send([encode(push)])

    def replay(self, suspended: SuspendedSequence, length: int, refill: Refill, shared: SharedStart) -> None:
        """Let the stage before ``refill.first`` send its logged hidden states of a sequence again.

        Those of a ``shared`` start are left out: the stages copy it from a sequence whose replay was ordered before.
        """
        order = Replay(
            self._epoch, suspended.sequence, suspended.capacity, shared.length, length, refill.until, shared.source
        )
        self._peers[refill.first - 1].control.send([encode(order)])
