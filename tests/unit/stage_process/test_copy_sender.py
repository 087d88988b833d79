"""A sender and a keeper of copies over a link that loses, delays and refuses: what is kept is always what was held."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgepp.errors import RemoteProtocolError
from edgepp.layers import LayerRange
from edgepp.stage_process.copy_sender import CopySender
from edgepp.stage_process.kv_copies import KvCopies
from edgepp.stage_process.kv_pieces import Piece, data_of
from edgepp.stage_process.paced_link import PacedLink
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.data import Batch, Echo, KvPiece

LAYERS = LayerRange(2, 4)
KEY = (1, 5)


class Holder:
    """Runner and model of one sequence: each position of each layer has one byte."""

    def __init__(self) -> None:
        self.layers, self.kv_layout, self.model = LAYERS, "form", self
        self.written: list[int] = []

    def length(self, key: Any) -> int:
        return len(self.written)

    def cache_id(self, key: Any) -> int:
        return 0

    def export_kv(self, _: int, layers: LayerRange, start: int, stop: int) -> list[bytes]:
        return [bytes(self.written[start:stop]) for _ in range(len(layers))]


class KeeperLink:
    """The link to a keeper, with the keeper at its end; also the ``BulkLink`` around it."""

    def __init__(self) -> None:
        self.copies = KvCopies(1 << 20)
        self.pace: PacedLink | None = PacedLink(self, 30)  # type: ignore[arg-type]
        self.queue: list[list[bytes]] = []
        self.echoes: list[bytes] = []
        self.takes, self.refused = True, 0

    def open(self) -> PacedLink | None:
        return self.pace

    def send(self, parts: Any, _: float = 0.0) -> bool:
        if self.takes:
            self.queue.append([bytes(part) for part in parts])
        return self.takes

    def receive(self) -> list[memoryview] | None:
        return [memoryview(self.echoes.pop(0))] if self.echoes else None

    def deliver(self) -> None:
        for header, *frames in self.queue:
            message = decode(header)
            if isinstance(message, Echo):
                self.echoes.append(encode(message._replace(reply=True)))
                continue
            assert isinstance(message, KvPiece)
            layers = LayerRange(message.start_layer, message.stop_layer)
            piece = Piece(layers, message.start, message.stop, bytes(data_of(message, [memoryview(frames[0])])))
            try:
                self.copies.keep((message.epoch, message.sequence), piece, message.layout, message.step)
            except RemoteProtocolError:
                self.refused += 1
        self.queue.clear()

    def kept(self) -> bytes:
        """The bytes of the first layer that are kept."""
        length = self.copies.lengths(1).get(LAYERS, {}).get(KEY[1], 0)
        pieces = self.copies.pieces(KEY, LAYERS, 0, length, "form") if length else []
        return b"".join(piece.data[: piece.stop - piece.start] for piece in pieces or ())


class SenderMachine(RuleBasedStateMachine):
    """Steps, background turns, and a network that loses whole connections.

    The keeper computes each frame before the sender, or after it, as it is an earlier or a later stage of the ring.
    """

    def __init__(self) -> None:
        super().__init__()
        self.holder, self.link, self.written = Holder(), KeeperLink(), 0
        self.sender = CopySender(self.holder, 1, self.link, 10)  # type: ignore[arg-type]
        self.sender.batch = 1
        self.is_earlier = False
        self.frames: list[tuple[int, int]] = []
        """Position and step of the frames that the keeper has not computed."""
        self.returned: list[int] = []
        """What all stages of the ring have computed."""

    @initialize(is_earlier=st.booleans())
    def place(self, is_earlier: bool) -> None:
        self.is_earlier = is_earlier

    @rule(back=st.integers(0, 3))
    def step(self, back: int) -> None:
        del self.holder.written[max(0, len(self.holder.written) - back) :]
        position = len(self.holder.written)
        self.written += 1
        self.frames.append((position, self.written))
        if self.is_earlier:
            self.compute()
        self.holder.written.append(self.written % 251)
        self.sender.computed(Batch(1, self.written, (KEY[1],), (position,), 8, "float32", "none", ()))

    @rule()
    def compute(self) -> None:
        """The keeper computes the next frame."""
        if self.frames:
            position, step = self.frames.pop(0)
            self.link.copies.computed(KEY, position, step)
            self.returned[position:] = [step % 251]

    @rule()
    def move(self) -> None:
        self.sender.move()

    @rule()
    def deliver(self) -> None:
        self.link.deliver()

    @rule()
    def lose_the_connection(self) -> None:
        self.link.queue.clear()
        self.link.echoes.clear()

    @rule(takes=st.booleans())
    def refuse(self, takes: bool) -> None:
        self.link.takes = takes

    @rule()
    def settle(self) -> None:
        """With a network that works, the keeper soon has everything."""
        self.link.takes = True
        for _ in range(3):
            self.step(0)
            for _ in range(9 + len(self.holder.written)):
                self.compute()
                self.link.deliver()
                self.sender.move()
            self.link.deliver()
        assert self.link.kept() == bytes(self.holder.written)

    @invariant()
    def what_is_kept_is_what_the_ring_has_computed(self) -> None:
        kept = self.link.kept()
        common = min(len(kept), len(self.returned))
        oldest = min((position for position, _ in self.frames), default=common)
        assert kept[: min(common, oldest)] == bytes(self.returned[: min(common, oldest)])


TestCopySender = SenderMachine.TestCase


def test_positions_of_a_decoding_sequence_go_together() -> None:
    holder, link = Holder(), KeeperLink()
    sender = CopySender(holder, 1, link, 4 * CopySender.batch)  # type: ignore[arg-type]
    for position in range(3 * CopySender.batch + 2):
        holder.written.append(position)
        sender.computed(Batch(1, position + 1, (KEY[1],), (position,), 8, "float32", "none", ()))
        assert not sender
        link.deliver()
    pieces = link.copies.pieces(KEY, LAYERS, 0, 3 * CopySender.batch, "form")
    assert pieces is not None
    assert [(one.start, one.stop) for one in pieces] == [(0, 8), (8, 16), (16, 24)]
    assert link.kept() == bytes(holder.written[: 3 * CopySender.batch])
    assert link.refused == 0
