"""Embedding, final norm and output head on the CPU: rows of the mapped checkpoint, and one ONNX Runtime session."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from edgepp.backend.base import BackendOptions
from edgepp.backend.onnx.architecture import check_head, check_tensors, read_architecture
from edgepp.backend.onnx.decoder_graph import build_head
from edgepp.backend.onnx.graph_builder import ORT_ERRORS, GraphBuilder
from edgepp.backend.onnx.weights import StoredRows
from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array, Checkpoint


class OnnxHead:
    """Final norm and output head in one session; of a ``ShardedCheckpoint``, the rank's part of the head."""

    def __init__(self, checkpoint: Checkpoint, options: BackendOptions) -> None:
        """Build the session.

        Raises:
            ModelError: the graph cannot express the model, a tensor is absent, or ONNX Runtime refuses the graph.
        """
        architecture = read_architecture(checkpoint)
        check_head(checkpoint)
        graph = GraphBuilder(checkpoint, exact=options.exact)
        build_head(graph, architecture)
        self._session = graph.session(options)

    def logits(self, hidden: Array) -> Array:
        """Float32 logits of the last layer's hidden states (T, D): (T, V), or (T, R) of the rank's R token ids.

        Raises:
            StageFault: ONNX Runtime failed.
        """
        x = np.ascontiguousarray(hidden, np.float32)[None]
        try:
            logits: Array = self._session.run(None, {"hidden": x})[0]
        except ORT_ERRORS as error:
            raise StageFault(f"ONNX Runtime failed in the output head: {error}") from error
        return logits.reshape(len(hidden), -1)


class OnnxEmbeddingAndHead:
    """Embedding rows from the mapped checkpoint, and the head, which is loaded at its first use."""

    positional = False
    any_thread = True

    def __init__(self, checkpoint: Checkpoint, options: BackendOptions) -> None:
        """Check the tensors and find the rows of the embedding; the head is loaded later.

        Raises:
            ModelError: the graph cannot express the model, or a tensor is absent or of another shape.
        """
        read_architecture(checkpoint)
        check_tensors(checkpoint, None)
        self._checkpoint, self._options = checkpoint, options
        self._embedding = StoredRows(checkpoint, "model.embed_tokens")
        self.vocabulary = checkpoint.vocab_size
        self._head: OnnxHead | None = None
        self._loading = threading.Lock()

    def load_head(self) -> OnnxHead:
        """The head, loaded once.

        Raises:
            ModelError: ONNX Runtime refuses its graph.
        """
        with self._loading:
            if self._head is None:
                self._head = OnnxHead(self._checkpoint, self._options)
            return self._head

    def embed(self, tokens: Sequence[int], _position: int | None = None) -> Array:
        """Float32 hidden states (T, D) of T token ids.

        Raises:
            StageFault: a token id lies outside the vocabulary.
        """
        if not all(0 <= token < self.vocabulary for token in tokens):
            raise StageFault(f"a token id lies outside the vocabulary of {self.vocabulary}")
        return self._embedding.read(np.asarray(tokens, np.int64))

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of the last layer's hidden states (T, D).

        Raises:
            StageFault: ONNX Runtime failed.
            ModelError: the head was not loaded yet, and ONNX Runtime refuses its graph.
        """
        return (self._head or self.load_head()).logits(hidden)
