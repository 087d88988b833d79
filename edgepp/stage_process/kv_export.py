"""Keys and values of this stage's caches, cut into pieces for another stage."""

from __future__ import annotations

from edgepp.backend.base import StageModel
from edgepp.layer_range import LayerRange
from edgepp.stage_process.kv_pieces import CachePiece, Cut


def cut_of(model: StageModel, cache_id: int, layers: LayerRange, max_bytes: int) -> Cut:
    """The cut of ``layers`` into pieces of at most ``max_bytes``, by what the first position of a sequence takes.

    Raises:
        StageFault: The stage cannot export the layers, or the sequence is empty.
    """
    first = LayerRange(layers.start, layers.start + 1)
    return Cut.of(layers, sum(map(len, model.export_kv(cache_id, first, 0, 1))), max_bytes)


def exported(model: StageModel, cache_id: int, cut: Cut, start: int, stop: int) -> list[CachePiece]:
    """One piece per group of layers, of as many positions from ``start`` on, before ``stop``, as the cut allows.

    Raises:
        StageFault: The sequence does not hold the positions.
    """
    end = min(stop, start + cut.positions_each)
    return [
        CachePiece(layers, start, end, b"".join(model.export_kv(cache_id, layers, start, end)))
        for layers in cut.groups()
    ]
