"""One rank's part of decoder layers: a session for each half of a layer, and a reduction over the ranks after each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort

from edgepp.backend.base import BackendOptions
from edgepp.backend.loader import Reduction
from edgepp.backend.onnx.architecture import Architecture
from edgepp.backend.onnx.bound_session import BoundLanes, RopeTables, bind_input, bind_output
from edgepp.backend.onnx.decoder_graph import DecoderGraph
from edgepp.backend.onnx.graph_builder import GraphBuilder
from edgepp.backend.onnx.kv_arena import LANES, Arena
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint

_BINDINGS = 2 * LANES


def architecture_of_rank(whole: Architecture, checkpoint: ShardedCheckpoint) -> Architecture:
    """The architecture ``whole`` with the number of heads of the rank of ``checkpoint``."""
    kv_heads = len(checkpoint.share.kv_heads)
    return replace(whole, heads=whole.heads // whole.kv_heads * kv_heads, kv_heads=kv_heads)


@dataclass(frozen=True)
class _Half:
    """The session of one half of a layer, the names of its outputs, and of the keys and values that it writes."""

    session: ort.InferenceSession
    outputs: tuple[str, str]
    caches: tuple[str, ...]


class HalfLayers:
    """Sessions that run one rank's part of ``layers`` over neighbouring lanes of an arena; like a ``BoundSession``."""

    def __init__(
        self,
        checkpoint: ShardedCheckpoint,
        architecture: Architecture,
        layers: LayerRange,
        options: BackendOptions,
        reduction: Reduction,
        on_layer: Callable[[int], None],
    ) -> None:
        """``architecture`` has the heads of the rank; ``on_layer`` is called with each layer that was built.

        Raises:
            ModelError: ONNX Runtime refuses a graph.
        """
        self._reduction = reduction
        self._tables = RopeTables(architecture.rope)
        self._bound: OrderedDict[tuple[Arena, int, int, bool], _Binding] = OrderedDict()
        self._halves: list[_Half] = []
        # Idle threads of one half would spin while the next half computes.
        options = replace(options, spin=False)
        for layer in range(layers.start, layers.stop):
            for attention in (True, False):
                graph = GraphBuilder(checkpoint, exact=options.exact)
                names = DecoderGraph(graph, architecture, options.kv_bits).build_half(layer, attention=attention)
                caches = (f"{layer}.key", f"{layer}.value") if attention else ()
                self._halves.append(_Half(graph.session(options), names, caches))
            on_layer(layer)

    def run(self, arena: Arena, first: int, hidden: Array, totals: Sequence[int]) -> Array:
        """Run ``hidden`` (B, T, D) in lanes ``first`` to ``first + B - 1``; returns float32 (B, T, D).

        Row i ends at position ``totals[i] - 1``; the keys and values of the rank's heads are written to the lane. B or
        T is 1. All ranks return the same numbers.

        Raises:
            StageFault: another rank cannot do the step.
        """
        key = (arena, first, len(hidden), hidden.shape[1] > 1)
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) == _BINDINGS:
                self._bound.popitem(last=False)
            bound = self._bound[key] = _Binding(self._halves, BoundLanes(self._tables, *key[:3]))
        self._bound.move_to_end(key)
        return bound.run(hidden, totals, self._reduction)


class _Binding:
    """The sessions of all halves, bound to some lanes of an arena, and to hidden states of one shape at a time."""

    def __init__(self, halves: Sequence[_Half], lanes: BoundLanes) -> None:
        self._halves = halves
        self._lanes = lanes
        self._bindings = [half.session.io_binding() for half in halves]
        for half, binding in zip(halves, self._bindings, strict=True):
            if half.caches:
                lanes.bind(binding, half.caches)
        self._take_shape((0, 0, 0))

    def _take_shape(self, shape: tuple[int, ...]) -> None:
        """Bind hidden states of ``shape``; a half reads one of two arrays, and writes the other for the next half."""
        self._hidden, self._other, self._delta, self._partial = (np.empty(shape, np.float32) for _ in range(4))
        if not self._hidden.size:
            return
        source, target = self._hidden, self._other
        for half, binding in zip(self._halves, self._bindings, strict=True):
            bind_input(binding, "hidden", source)
            bind_input(binding, "delta", self._delta)
            for name, array in zip(half.outputs, (target, self._partial), strict=True):
                bind_output(binding, name, array)
            source, target = target, source

    def run(self, hidden: Array, totals: Sequence[int], reduction: Reduction) -> Array:
        """Run ``hidden`` (B, T, D), where row i ends at position ``totals[i] - 1``; returns float32 (B, T, D)."""
        if self._hidden.shape != hidden.shape:
            self._take_shape(hidden.shape)
        self._hidden[:] = hidden
        self._delta.fill(0)
        self._lanes.move_to(totals)
        partial, total = (array.reshape(-1, array.shape[-1]) for array in (self._partial, self._delta))
        for half, binding in zip(self._halves, self._bindings, strict=True):
            half.session.run_with_iobinding(binding)
            reduction(partial, total)
        out: Array = self._hidden + self._delta  # two halves per layer: the last one wrote the first array
        return out
