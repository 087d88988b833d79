"""A rank of a tensor-parallel stage other than rank 0: does what rank 0 does, until told to stop."""

from __future__ import annotations

from collections.abc import Sequence

from edgepp.backend.base import StageModel
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange
from edgepp.stage_process.cache_orders import change_cache
from edgepp.stage_process.output_head import WantedResult
from edgepp.stage_process.rank_group import SUMS_PER_LAYER, PeerFault, RankGroup
from edgepp.stage_process.split_head import SplitHead
from edgepp.wire import codec
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.ranks import CacheDone, CacheOrder, KvExported, KvOrder, StepOrder
from edgepp.wire.text_fields import sentence


def follow(model: StageModel, group: RankGroup, inbox: Mailbox[None], head: SplitHead | None = None) -> None:
    """Follow the orders of rank 0 until something is put into ``inbox``; ``head`` is the rank's part of the head.

    Raises:
        PeerLost: a rank is gone, or broke the protocol.
        RemoteProtocolError: rank 0 sent a tensor that its header does not describe.
    """
    group.wake_on(inbox)
    other = _OtherRank(model, group, head)
    while (received := group.next_order(inbox)) is not None:
        order, frames = received
        match order:
            case CacheOrder():
                other.change(order)
            case KvOrder(operation="export"):
                other.export(order)
            case KvOrder():
                other.take(order, frames)
            case StepOrder():
                other.compute(order, frames)
        # Others are partial sums and faults of a step that failed here.


class _OtherRank:
    """Handlers of a rank, one per kind of order."""

    def __init__(self, model: StageModel, group: RankGroup, head: SplitHead | None) -> None:
        self._model = model
        self._group = group
        self._head = head
        self._not_imported: dict[int, str] = {}
        """Why keys and values of a sequence could not be imported."""

    def change(self, order: CacheOrder) -> None:
        """Change a cache, and reply where rank 0 waits for that."""
        failed = self._not_imported.pop(order.sequence, "")
        try:
            if order.operation == "set_length" and failed:
                raise StageFault(failed)
            change_cache(self._model, order)
            reason = ""
        except StageFault as fault:
            reason = str(fault)
        if order.operation not in ("truncate", "free"):
            self._group.send(0, [encode(CacheDone(sentence(reason)))])

    def export(self, order: KvOrder) -> None:
        """Send the keys and values of this rank's heads to rank 0."""
        layers = LayerRange(order.start_layer, order.stop_layer)
        try:
            data = b"".join(self._model.export_kv(order.sequence, layers, order.start, order.stop))
        except StageFault as fault:
            self._group.send(0, [encode(KvExported(sentence(str(fault))))])
            return
        self._group.send(0, [encode(KvExported("")), data])

    def take(self, order: KvOrder, frames: Sequence[memoryview]) -> None:
        """Import keys and values of this rank's heads; a failure is told in reply to ``set_length``."""
        layers = LayerRange(order.start_layer, order.stop_layer)
        try:
            self._model.import_kv(order.sequence, layers, order.start, order.stop, frames)
        except StageFault as fault:
            self._not_imported[order.sequence] = str(fault)

    def compute(self, order: StepOrder, tensor: Sequence[memoryview]) -> None:
        """Compute a step; a failure is told to the other ranks, which fail too."""
        hidden = codec.decode(tensor, order.rows, order.width, order.dtype, "none")
        self._group.begin_step(order.step, SUMS_PER_LAYER * len(self._model.layers) if order.timed else 0)
        try:
            held = tuple(self._model.length(sequence) for sequence in order.sequences)
            if held != order.positions:
                raise StageFault(f"the sequences hold {held} positions, and {order.positions} in rank 0")
            if len(order.sequences) == 1:
                out = self._model.extend(order.sequences[0], hidden)
            else:
                out = self._model.decode(order.sequences, hidden)
            if self._head is not None and order.wanted_rows:
                wanted = WantedResult(order.wanted_rows, order.result, order.candidates)
                self._head.send_part(self._group, out, wanted)
        except PeerFault:
            return
        except StageFault as fault:
            self._group.fail_step(str(fault))
