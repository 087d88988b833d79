"""The CPU backend: a layer range is one ONNX Runtime graph, built in memory from MLX's weights.

By default linears multiply by int8 activations, as llama.cpp does; ``BackendOptions.exact`` computes in
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgepp.backend.base import BackendOptions, Progress, SequenceFault, check_fork, check_rows
from edgepp.backend.onnx.architecture import Architecture, check_tensors, read_architecture
from edgepp.backend.onnx.bound_session import BoundSession
from edgepp.backend.onnx.decoder_graph import DecoderGraph, build_head
from edgepp.backend.onnx.graph_builder import ORT_ERRORS, GraphBuilder
from edgepp.backend.onnx.kv_arena import Arena, CacheShape
from edgepp.backend.onnx.kv_cache import CachedSequence, SequenceCaches
from edgepp.backend.onnx.weights import rows_of
from edgepp.errors import ModelError, StageFault
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint

CHUNK = 64
"""Tokens of a prefill chunk: 2 % below the best rate; 32 costs 5 to 8 %, 16 costs 15 %, 256 and more lose again."""


def fits(checkpoint: Checkpoint) -> bool:
    """Whether this backend can run the model."""
    try:
        read_architecture(checkpoint)
    except ModelError:
        return False
    return True


class OnnxBackend:
    """ONNX Runtime on the CPU."""

    name = "onnx"

    def load_stage(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
    ) -> OnnxStage:
        """Load decoder layers ``layers`` of the checkpoint and nothing else.

        Raises:
            ModelError: it lacks them, or the family does not fit.
        """
        return OnnxStage(checkpoint, layers, options, progress)

    def load_embedding_and_head(self, checkpoint: Checkpoint, options: BackendOptions) -> OnnxEmbeddingAndHead:
        """Load embedding, final norm and head of the checkpoint and nothing else.

        Raises:
            ModelError: it lacks them, or the family does not fit.
        """
        return OnnxEmbeddingAndHead(checkpoint, options)


class OnnxStage:
    """Decoder layers in one session, which appends to the caches in place."""

    dtype = "float32"
    device = "cpu"
    rewinds = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
    ) -> None:
        architecture = read_architecture(checkpoint)
        if options.kv_bits == 4:
            raise ModelError(
                "the onnx backend keeps keys and values in float32 or in 8 bits, not in 4",
                "choose 8 bits, or the mlx backend",
            )
        checkpoint.require(layers)
        check_tensors(checkpoint, layers)
        graph = GraphBuilder(checkpoint, exact=options.exact)
        DecoderGraph(graph, architecture, options.kv_bits).build(layers, _reporter(checkpoint, layers, progress))
        self.layers = layers
        self.hidden_size = architecture.hidden_size
        # Attention takes this many rows at a time, and one that is left over for itself would be rounded differently.
        self.chunk = min(CHUNK, 2 * architecture.head_dim)
        self._architecture: Architecture = architecture
        self._session = BoundSession(graph.session(options), architecture.rope)
        self._caches = SequenceCaches(CacheShape.of(architecture, layers, options.kv_bits))
        self._places: dict[int, CachedSequence] = {}

    def open(self, sequence: int, capacity: int) -> None:
        """Begin a sequence of at most ``capacity`` positions.

        Raises:
            StageFault: the capacity is beyond the model's context, or memory is short.
        """
        self._check_context(capacity)
        self.free(sequence)
        try:
            self._places[sequence] = self._caches.open(capacity)
        except MemoryError as error:
            raise StageFault("memory for another sequence is short") from error

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the sequence's next T positions; returns float32 (T, D).

        Raises:
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or ONNX Runtime failed.
        """
        (place,) = self._known([sequence])
        if hidden.ndim != 2 or not len(hidden) or hidden.shape[1] != self.hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self.hidden_size})")
        self._reserve([sequence], [place], len(hidden))
        total = place.length + len(hidden)
        out: Array = self._run(place.arena, place.lane, hidden[None], [total])[0]
        place.length = total
        return out

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """Run row i of ``hidden`` (B, D) at the next position of ``sequences[i]``; returns float32 (B, D).

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or ONNX Runtime failed.
        """
        check_rows(sequences, hidden, self.hidden_size)
        if len(sequences) == 1:
            return self.extend(sequences[0], hidden)
        batch = self._known(sequences)
        self._reserve(sequences, batch, 1)
        row_of = {place.number: row for row, place in enumerate(batch)}
        out = np.empty((len(batch), self.hidden_size), np.float32)
        for run in self._caches.runs(batch):
            rows = [row_of[place.number] for place in run.places]
            totals = [place.length + 1 for place in run.places]
            out[rows] = self._run(run.arena, run.first, hidden[rows, None], totals)[:, 0]
        for place in batch:
            place.length += 1
        return out

    def _run(self, arena: Arena, first: int, hidden: Array, totals: Sequence[int]) -> Array:
        try:
            return self._session.run(arena, first, hidden, totals)
        except ORT_ERRORS as error:
            raise StageFault(f"ONNX Runtime failed in layers {self.layers}: {error}") from error

    def _reserve(self, sequences: Sequence[int], places: Sequence[CachedSequence], positions: int) -> None:
        full = [n for n, place in enumerate(places) if place.length + positions > place.capacity]
        if full:
            place = places[full[0]]
            raise SequenceFault(
                f"the sequence would have {place.length + positions} positions, and it was opened for {place.capacity}",
                tuple(sequences[n] for n in full),
                "shorten the prompt or ask for fewer tokens",
            )
        try:
            for place in places:
                self._caches.reserve(place, place.length + positions)
        except MemoryError as error:
            raise StageFault("memory for the sequence's next positions is short") from error

    def truncate(self, sequence: int, length: int) -> None:
        """Forget every position from ``length`` on.

        Raises:
            StageFault: the sequence is unknown.
        """
        (place,) = self._known([sequence])
        place.length = max(0, min(place.length, length))

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        """See ``StageModel.fork``.

        Raises:
            SequenceFault: the source is unknown or holds fewer positions.
            StageFault: the capacity is beyond the model's context or below ``length``, or memory is short.
        """
        (place,) = self._known([source])
        check_fork(source, place.length, sequence, length, capacity)
        self._check_context(capacity)
        self.free(sequence)
        try:
            self._places[sequence] = self._caches.fork(place, length, capacity)
        except MemoryError as error:
            raise StageFault("memory for another sequence is short") from error

    def resize(self, sequence: int, capacity: int) -> None:
        """See ``StageModel.resize``.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the capacity is beyond the model's context or below what the sequence holds.
        """
        (place,) = self._known([sequence])
        self._check_context(capacity)
        if capacity < place.length:
            raise StageFault(f"a sequence of {place.length} positions does not fit {capacity}")
        self._caches.resize(place, capacity)

    def _check_context(self, capacity: int) -> None:
        context = self._architecture.context
        if not 0 < capacity <= context:
            raise StageFault(f"a sequence of {capacity} positions does not fit the model's context of {context}")

    def length(self, sequence: int) -> int:
        """Positions that the sequence's cache holds."""
        return self._known([sequence])[0].length

    def free(self, sequence: int) -> None:
        """Forget the sequence and release its cache."""
        place = self._places.pop(sequence, None)
        if place is not None:
            self._caches.free(place)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the caches of all open sequences take."""
        return self._caches.nbytes

    def _known(self, sequences: Sequence[int]) -> list[CachedSequence]:
        unknown = tuple(n for n in sequences if n not in self._places)
        if unknown:
            raise SequenceFault(f"layers {self.layers} know no sequence {', '.join(map(str, unknown))}", unknown)
        return [self._places[n] for n in sequences]


def _reporter(checkpoint: Checkpoint, layers: LayerRange, progress: Progress | None) -> Callable[[int], None]:
    """Tells ``progress`` of each layer that is ready."""
    total = checkpoint.layer_bytes(layers)

    def added(layer: int) -> None:
        if progress is not None:
            progress(checkpoint.layer_bytes(LayerRange(layers.start, layer + 1)), total)

    return added


class OnnxEmbeddingAndHead:
    """Embedding straight from the mapped checkpoint; final norm and head in one session."""

    positional = False

    def __init__(self, checkpoint: Checkpoint, options: BackendOptions) -> None:
        architecture = read_architecture(checkpoint)
        check_tensors(checkpoint, None)
        graph = GraphBuilder(checkpoint, exact=options.exact)
        build_head(graph, architecture)
        self._session = graph.session(options)
        self._checkpoint = checkpoint
        self.vocabulary = checkpoint.vocab_size

    def embed(self, tokens: Sequence[int], _position: int | None = None) -> Array:
        """Hidden states (T, D) of T token ids, float32.

        Raises:
            StageFault: a token id lies outside the vocabulary.
        """
        ids = np.asarray(tokens, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise StageFault(f"a token id lies outside the vocabulary of {self.vocabulary}")
        return rows_of(self._checkpoint, "model.embed_tokens", ids)

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of the last layer's hidden states (T, D).

        Raises:
            StageFault: ONNX Runtime failed.
        """
        x = np.ascontiguousarray(hidden, np.float32)[None]
        try:
            logits: Array = self._session.run(None, {"hidden": x})[0]
        except ORT_ERRORS as error:
            raise StageFault(f"ONNX Runtime failed in the output head: {error}") from error
        return logits.reshape(len(hidden), -1)
