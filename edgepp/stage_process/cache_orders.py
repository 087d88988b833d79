"""Changes of a cache by an order: rank 0 of a group changes its own model, then orders the other ranks to."""

from __future__ import annotations

from edgepp.backend.base import StageModel
from edgepp.wire.messages.ranks import CacheOrder


def change_cache(model: StageModel, order: CacheOrder) -> None:
    """Follow an order with ``model``.

    Raises:
        StageFault: as the method of ``StageModel`` that has the name of the operation.
    """
    sequence = order.sequence
    match order.operation:
        case "open":
            model.open(sequence, order.capacity)
        case "fork":
            model.fork(order.source, sequence, order.length, order.capacity)
        case "resize":
            model.resize(sequence, order.capacity)
        case "truncate":
            model.truncate(sequence, order.length)
        case "set_length":
            model.set_length(sequence, order.length)
        case "free":
            model.free(sequence)
