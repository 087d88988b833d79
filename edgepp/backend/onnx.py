"""The CPU backend: a layer range is one ONNX Runtime graph, built in memory from MLX's weights.

By default linears multiply by int8 activations, as llama.cpp does; ``BackendOptions.exact`` computes in
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgepp.backend.base import BackendOptions, Progress
from edgepp.backend.onnx_cache import CacheShape, RopeTables, SequenceCache
from edgepp.backend.onnx_decoder import DecoderGraph, build_head
from edgepp.backend.onnx_family import Architecture, read_architecture
from edgepp.backend.onnx_graph import ORT_ERRORS, GraphBuilder
from edgepp.backend.onnx_weights import rows_of
from edgepp.errors import ModelError, StageFault
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Array, Checkpoint

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

    def load_ends(self, checkpoint: Checkpoint, options: BackendOptions) -> OnnxEnds:
        """Load embedding, final norm and head of the checkpoint and nothing else.

        Raises:
            ModelError: it lacks them, or the family does not fit.
        """
        return OnnxEnds(checkpoint, options)


class OnnxStage:
    """Decoder layers in one session; each sequence's cache holds the memory that the session appends to."""

    dtype = "float32"
    chunk = CHUNK
    device = "cpu"

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        options: BackendOptions,
        progress: Progress | None = None,
    ) -> None:
        architecture = read_architecture(checkpoint)
        checkpoint.require(layers)
        graph = GraphBuilder(checkpoint, exact=options.exact)
        DecoderGraph(graph, architecture).build(layers, _reporter(checkpoint, layers, progress))
        self.layers = layers
        self.hidden_size = architecture.hidden_size
        self._architecture: Architecture = architecture
        self._session = graph.session(options)
        self._shape = CacheShape.of(architecture, layers)
        self._tables = RopeTables(architecture.rope)
        self._caches: dict[int, SequenceCache] = {}

    def open(self, sequence: int, capacity: int) -> None:
        """Begin a sequence of at most ``capacity`` positions.

        Raises:
            StageFault: the capacity is beyond the model's context, or memory is short.
        """
        context = self._architecture.context
        if not 0 < capacity <= context:
            raise StageFault(f"a sequence of {capacity} positions does not fit the model's context of {context}")
        try:
            self._caches[sequence] = SequenceCache(self._session, self._shape, self._tables, capacity)
        except MemoryError as error:
            raise StageFault("memory for another sequence is short") from error

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the sequence's next T positions; returns float32 (T, D).

        Raises:
            StageFault: the sequence is unknown or full, or ONNX Runtime failed.
        """
        cache = self._cache(sequence)
        if hidden.ndim != 2 or not len(hidden) or hidden.shape[1] != self.hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self.hidden_size})")
        try:
            return cache.run(hidden)
        except MemoryError as error:
            raise StageFault("memory for the sequence's next positions is short") from error
        except ORT_ERRORS as error:
            raise StageFault(f"ONNX Runtime failed in layers {self.layers}: {error}") from error

    def truncate(self, sequence: int, length: int) -> None:
        """Forget every position from ``length`` on.

        Raises:
            StageFault: the sequence is unknown.
        """
        cache = self._cache(sequence)
        cache.length = max(0, min(cache.length, length))

    def length(self, sequence: int) -> int:
        """Positions that the sequence's cache holds."""
        return self._cache(sequence).length

    def free(self, sequence: int) -> None:
        """Forget the sequence and release its cache."""
        self._caches.pop(sequence, None)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the caches of all open sequences take."""
        return sum(cache.nbytes for cache in self._caches.values())

    def _cache(self, sequence: int) -> SequenceCache:
        cache = self._caches.get(sequence)
        if cache is None:
            raise StageFault(f"layers {self.layers} know no sequence {sequence}")
        return cache


def _reporter(checkpoint: Checkpoint, layers: LayerRange, progress: Progress | None) -> Callable[[int], None]:
    """Tells ``progress`` of each layer that is ready."""
    total = checkpoint.layer_bytes(layers)

    def added(layer: int) -> None:
        if progress is not None:
            progress(checkpoint.layer_bytes(LayerRange(layers.start, layer + 1)), total)

    return added


class OnnxEnds:
    """Embedding straight from the mapped checkpoint; final norm and head in one session."""

    def __init__(self, checkpoint: Checkpoint, options: BackendOptions) -> None:
        architecture = read_architecture(checkpoint)
        graph = GraphBuilder(checkpoint, exact=options.exact)
        build_head(graph, architecture)
        self._session = graph.session(options)
        self._checkpoint = checkpoint

    def embed(self, tokens: Sequence[int], _position: int | None = None) -> Array:
        """Hidden states (T, D) of T token ids, float32.

        Raises:
            StageFault: a token id lies outside the vocabulary.
        """
        ids = np.asarray(tokens, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._checkpoint.vocab_size:
            raise StageFault(f"a token id lies outside the vocabulary of {self._checkpoint.vocab_size}")
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
