"""Decoder layers ``[a, b)`` in ONNX Runtime, whole or one rank's part, with KV caches that the sessions write."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

import numpy as np

from edgepp.backend.base import BackendOptions, KvChunk, Progress
from edgepp.backend.kv_transfer import KvImports, joined
from edgepp.backend.loader import Reduction
from edgepp.backend.onnx.architecture import Architecture, check_tensors, read_architecture
from edgepp.backend.onnx.bound_session import BoundSession, RunInterruption
from edgepp.backend.onnx.decoder_graph import DecoderGraph
from edgepp.backend.onnx.graph_builder import ORT_ERRORS, GraphBuilder
from edgepp.backend.onnx.half_layers import HalfLayers, architecture_of_rank
from edgepp.backend.onnx.kv_arena import Arena, CacheShape
from edgepp.backend.onnx.kv_cache import CachedSequence, LaneAllocator
from edgepp.backend.step_checks import caches_of, check_fork, check_room, check_rows
from edgepp.errors import ModelError, StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint

CHUNK = 64
"""Tokens per prefill chunk: 2 % below the best rate. 32 costs 5 to 8 %, 16 costs 15 %; 256 and more are slower, too."""

_POSITIONS = 4 if platform.machine().lower() in {"aarch64", "arm64"} else 1
"""Attention is computed over a multiple of this number of positions; rows behind the last position are dropped.

On ARM the product of attention weights and values is rounded differently for the last positions, where their number is
no multiple of 4; the numbers of a prompt would depend on the places where the prompt is cut.
"""

_SHORT_HINT = "close other programs, or give this node fewer layers"


class OnnxStage:
    """Decoder layers in ONNX Runtime, which appends keys and values to the caches; implements ``StageModel``."""

    dtype = "float32"
    device = "cpu"
    rewinds = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
        reduction: Reduction | None = None,
    ) -> None:
        """Build the graphs of ``layers`` and make them ready to run.

        With a ``reduction``, ``checkpoint`` is a ``ShardedCheckpoint``, and the stage computes the part of its rank.

        Raises:
            ModelError: the checkpoint lacks tensors, the graph cannot express the model, or ``kv_bits`` is 4.
        """
        architecture = read_architecture(checkpoint)
        if options.kv_bits == 4:
            raise ModelError(
                "the onnx backend keeps keys and values in float32 or in 8 bits, not in 4",
                "choose 8 bits, or the mlx backend",
            )
        checkpoint.require(layers)
        check_tensors(checkpoint, layers)
        on_layer = _layer_reporter(checkpoint, layers, progress)
        all_kv_heads = architecture.kv_heads
        self._session: BoundSession | HalfLayers
        self.interruption: RunInterruption | None = None  # ranks compute a step all or not at all
        self._pads = reduction is None  # ranks on different processors would pad to different numbers of rows
        if isinstance(checkpoint, ShardedCheckpoint) and reduction is not None:
            architecture = architecture_of_rank(architecture, checkpoint)
            self._session = HalfLayers(checkpoint, architecture, layers, options, reduction, on_layer)
        else:
            graph = GraphBuilder(checkpoint, exact=options.exact)
            DecoderGraph(graph, architecture, options.kv_bits).build(layers, on_layer)
            self.interruption = RunInterruption()
            self._session = BoundSession(graph.session(options), architecture.rope, self.interruption)
        self.layers = layers
        self.hidden_size = architecture.hidden_size
        # The attention kernel processes this many rows at a time; a single leftover row would be rounded differently.
        self.chunk = min(CHUNK, 2 * architecture.head_dim)
        self._architecture: Architecture = architecture
        shape = CacheShape.of(architecture, layers, options.kv_bits, all_kv_heads)
        self._lanes = LaneAllocator(shape)
        self._imports = KvImports(layers, shape.layout)
        self.layout = self._imports.layout
        self.kv_layout = self.layout.name
        self._sequences: dict[int, CachedSequence] = {}

    def open(self, sequence: int, capacity: int) -> None:
        """Begin a sequence of at most ``capacity`` positions; an open sequence of the same id is freed first.

        Raises:
            StageFault: the capacity is beyond the model's context, or memory is short.
        """
        self._check_context(capacity)
        self.free(sequence)
        try:
            self._sequences[sequence] = self._lanes.open(capacity)
        except MemoryError as error:
            raise StageFault("memory for another sequence is short", _SHORT_HINT) from error

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the sequence's next T positions; returns float32 (T, D).

        Raises:
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, memory is short, or ONNX Runtime failed.
        """
        (cache,) = self._caches_of([sequence])
        if hidden.ndim != 2 or not len(hidden) or hidden.shape[1] != self.hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self.hidden_size})")
        rows = len(hidden)
        total = cache.length + rows
        spare = -total % _POSITIONS if rows > 1 and self._pads else 0
        self._reserve([sequence], [cache], rows, spare)
        if spare:
            hidden = np.concatenate([hidden, np.zeros((spare, self.hidden_size), hidden.dtype)])
        out: Array = self._run(cache.arena, cache.lane, hidden[None], [total + spare])[0][:rows]
        cache.length = total
        return out

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """Run row i of ``hidden`` (B, D) at the next position of ``sequences[i]``; returns float32 (B, D).

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, memory is short, or ONNX Runtime failed.
        """
        check_rows(sequences, hidden, self.hidden_size)
        if len(sequences) == 1:
            return self.extend(sequences[0], hidden)
        batch = self._caches_of(sequences)
        self._reserve(sequences, batch, 1)
        row_of = {cache.number: row for row, cache in enumerate(batch)}
        out = np.empty((len(batch), self.hidden_size), np.float32)
        for run in self._lanes.runs(batch):
            rows = [row_of[cache.number] for cache in run.sequences]
            totals = [cache.length + 1 for cache in run.sequences]
            out[rows] = self._run(run.arena, run.first, hidden[rows, None], totals)[:, 0]
        for cache in batch:
            cache.length += 1
        return out

    def _run(self, arena: Arena, first: int, hidden: Array, totals: Sequence[int]) -> Array:
        try:
            return self._session.run(arena, first, hidden, totals)
        except ORT_ERRORS as error:
            raise StageFault(f"ONNX Runtime failed in layers {self.layers}: {error}") from error

    def _reserve(
        self, sequences: Sequence[int], caches: Sequence[CachedSequence], positions: int, spare: int = 0
    ) -> None:
        check_room(sequences, caches, positions)
        self._imports.forget(*sequences)
        try:
            for cache in caches:
                self._lanes.reserve(cache, cache.length + positions + spare)
        except MemoryError as error:
            raise StageFault("memory for the next positions of the sequence is short", _SHORT_HINT) from error

    def truncate(self, sequence: int, length: int) -> None:
        """Drop the positions of a sequence from ``length`` on.

        Raises:
            SequenceFault: the sequence is unknown.
        """
        (cache,) = self._caches_of([sequence])
        self._imports.forget(sequence)
        cache.length = max(0, min(cache.length, length))

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        """Begin ``sequence`` with a copy of the first ``length`` positions of ``source``.

        Raises:
            SequenceFault: the source is unknown or holds fewer positions.
            StageFault: the capacity is beyond the model's context or below ``length``, or memory is short.
        """
        (cache,) = self._caches_of([source])
        check_fork(source, cache.length, sequence, length, capacity)
        self._check_context(capacity)
        self.free(sequence)
        try:
            self._sequences[sequence] = self._lanes.fork(cache, length, capacity)
        except MemoryError as error:
            raise StageFault("memory for another sequence is short", _SHORT_HINT) from error

    def resize(self, sequence: int, capacity: int) -> None:
        """Change the capacity of a sequence to ``capacity`` positions and release memory beyond it.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the capacity is beyond the model's context or below what the sequence holds.
        """
        (cache,) = self._caches_of([sequence])
        self._check_context(capacity)
        if capacity < cache.length:
            raise StageFault(f"a sequence of {cache.length} positions does not fit {capacity}")
        self._imports.forget(sequence)
        self._lanes.resize(cache, capacity)

    def _check_context(self, capacity: int) -> None:
        context = self._architecture.context
        if not 0 < capacity <= context:
            raise StageFault(f"a sequence of {capacity} positions does not fit the model's context of {context}")

    def length(self, sequence: int) -> int:
        """Positions that the cache of the sequence holds.

        Raises:
            SequenceFault: the sequence is unknown.
        """
        return self._caches_of([sequence])[0].length

    def export_kv(self, sequence: int, layers: LayerRange, start: int, stop: int) -> Sequence[KvChunk]:
        """Copy the keys and values of a sequence in ``layers`` at positions [start, stop), as one chunk.

        Raises:
            SequenceFault: the sequence is unknown or holds fewer than ``stop`` positions.
            StageFault: the stage lacks the layers, or the positions are not a range.
        """
        (cache,) = self._caches_of([sequence])
        self._imports.check_export(sequence, cache.length, layers, start, stop)
        return [self._lanes.read(cache, layers, start, stop)]

    def import_kv(self, sequence: int, layers: LayerRange, start: int, stop: int, data: Sequence[KvChunk]) -> None:
        """Write keys and values of the same ``kv_layout`` at positions [start, stop) of ``layers``.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: layers, positions or number of bytes do not fit, or memory is short; nothing was written.
        """
        (cache,) = self._caches_of([sequence])
        piece = joined(data)
        self._imports.begin(
            sequence, cache.length, cache.capacity, layers, range(start, stop), memoryview(piece).nbytes
        )
        try:
            self._lanes.reserve(cache, stop, max(cache.length, self._imports.farthest(sequence)))
        except MemoryError as error:
            raise StageFault("memory for imported positions is short", _SHORT_HINT) from error
        self._lanes.write(cache, layers, start, stop, piece)
        self._imports.done(sequence, layers, stop)

    def set_length(self, sequence: int, length: int) -> None:
        """Make ``length`` the number of positions of a sequence; all layers hold or have imported as many.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: some layer has fewer positions; nothing changed.
        """
        (cache,) = self._caches_of([sequence])
        self._imports.check_length(sequence, cache.length, length)
        self._imports.forget(sequence)
        cache.length = length

    def free(self, sequence: int) -> None:
        """Release the cache of a sequence; an unknown sequence is ignored."""
        self._imports.forget(sequence)
        cache = self._sequences.pop(sequence, None)
        if cache is not None:
            self._lanes.free(cache)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the caches of all open sequences take."""
        return self._lanes.nbytes

    def _caches_of(self, sequences: Sequence[int]) -> list[CachedSequence]:
        return caches_of(sequences, self._sequences, self.layers)


def _layer_reporter(checkpoint: Checkpoint, layers: LayerRange, progress: Progress | None) -> Callable[[int], None]:
    """A function to call with each layer once it is built; the call reports the stored bytes so far to ``progress``."""
    total = checkpoint.layer_bytes(layers)

    def report(layer: int) -> None:
        if progress is not None:
            progress(checkpoint.layer_bytes(LayerRange(layers.start, layer + 1)), total)

    return report
