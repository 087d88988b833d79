"""Keys and values that the coordinator had this stage send to another one, one piece at a time between two frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from edgepp.errors import RemoteProtocolError, StageFault
from edgepp.layer_range import LayerRange
from edgepp.stage_process.bulk_link import BulkLink
from edgepp.stage_process.kv_copies import KvCopies
from edgepp.stage_process.kv_export import cut_of, exported
from edgepp.stage_process.kv_pieces import CachePiece, Cut
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.wire.messages.recovery import Push

MAX_QUEUED = 4096
"""Orders that may wait for one stage."""


@dataclass
class _Order:
    push: Push
    pieces: Iterator[CachePiece]


class PushQueue:
    """Orders to send to one other stage, oldest first. Belongs to the compute thread."""

    def __init__(self, runner: ModelRunner, copies: KvCopies, link: BulkLink, max_bytes: int) -> None:
        """``max_bytes`` bounds the bytes of a piece."""
        self._runner = runner
        self._copies = copies
        self._link = link
        self._max_bytes = max_bytes
        self._orders: deque[_Order] = deque()
        self._unconfirmed: list[Push] = []
        """Orders whose pieces were all sent, and may not have arrived."""

    def __bool__(self) -> bool:
        """Whether something has not arrived yet."""
        return bool(self._orders or self._unconfirmed)

    def add(self, push: Push) -> None:
        """Queue an order.

        Raises:
            StageFault: The stage does not hold what it is to send, or too many orders wait.
        """
        if len(self._orders) >= MAX_QUEUED:
            raise StageFault(f"{MAX_QUEUED} orders to send keys and values wait already")
        pieces = self._own(push) if push.what == "kv" else iter(self._kept(push))
        self._orders.append(_Order(push, pieces))

    def move(self) -> bool:
        """Send one piece, where there is room; whether one was sent.

        Raises:
            PushFault: An order failed, which is forgotten.
        """
        pace = self._link.open()
        if pace is None:
            if self._link.failure:
                raise self._failed(f"the other stage cannot be reached: {self._link.failure}")
            return False
        try:
            if pace.read_echoes():
                raise self._failed("the other stage does not take the keys and values")
        except RemoteProtocolError as error:
            raise self._failed(f"the other stage broke the protocol: {error}") from error
        if pace.is_idle:
            self._unconfirmed.clear()
        if not self._orders or not pace.has_room(self._max_bytes):
            return False
        order = self._orders[0]
        try:
            piece = next(order.pieces, None)
        except StageFault as fault:
            self._orders.popleft()
            raise PushFault(str(fault), [order.push]) from fault
        if piece is None:
            self._unconfirmed.append(self._orders.popleft().push)
            return True
        parts = piece.message(order.push.to_epoch, order.push.sequence, "restore", self._runner.model.kv_layout)
        if not pace.link.send(parts):
            raise self._failed("the connection to the other stage has ended")
        pace.mark(len(piece.data))
        return True

    @property
    def is_connected(self) -> bool:
        """Whether there is a link."""
        return self._link.pace is not None

    def close(self) -> None:
        """Close the link."""
        self._link.close()

    def _failed(self, reason: str) -> PushFault:
        """The failure of all orders that may not have arrived."""
        pushes = [*self._unconfirmed, *(order.push for order in self._orders)]
        self._unconfirmed.clear()
        self._orders.clear()
        return PushFault(reason, pushes)

    def _own(self, push: Push) -> Iterator[CachePiece]:
        """Pieces of this stage's own caches."""
        key, layers, model = (push.epoch, push.sequence), _layers(push), self._runner.model
        length = self._runner.length(key)
        if not model.kv_layout:
            raise StageFault("the caches of this stage cannot be sent to another one")
        if length is None or length < push.stop:
            raise StageFault(f"this stage holds {length or 0} positions of the sequence, not {push.stop}")
        if layers.start < model.layers.start or layers.stop > model.layers.stop:
            raise StageFault(f"this stage has layers {model.layers}, not {layers}")
        return self._exported(key, layers, push.start, push.stop)

    def _exported(self, key: tuple[int, int], layers: LayerRange, start: int, stop: int) -> Iterator[CachePiece]:
        model = self._runner.model
        cut: Cut | None = None
        while start < stop:
            cache_id = self._runner.cache_id(key)
            if cache_id is None:
                raise StageFault("the sequence was freed before it was sent")
            cut = cut or cut_of(model, cache_id, layers, self._max_bytes)
            pieces = exported(model, cache_id, cut, start, stop)
            yield from pieces
            start = pieces[0].stop

    def _kept(self, push: Push) -> list[CachePiece]:
        """Pieces of the copies that this stage keeps."""
        layout = self._runner.model.kv_layout
        pieces = self._copies.pieces((push.epoch, push.sequence), _layers(push), push.start, push.stop, layout)
        if pieces is None:
            raise StageFault(f"this stage keeps no copies of layers {_layers(push)} up to position {push.stop}")
        return pieces


class PushFault(StageFault):
    """Orders that cannot be carried out."""

    def __init__(self, message: str, pushes: list[Push]) -> None:
        super().__init__(message)
        self.pushes = pushes


def _layers(push: Push) -> LayerRange:
    return LayerRange(push.start_layer, push.stop_layer)
