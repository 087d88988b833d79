"""Embedding, final norm and output head on the CPU: rows of the mapped checkpoint, and one ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepp.backend.base import BackendOptions
from edgepp.backend.onnx.architecture import check_tensors, read_architecture
from edgepp.backend.onnx.decoder_graph import build_head
from edgepp.backend.onnx.graph_builder import ORT_ERRORS, GraphBuilder
from edgepp.backend.onnx.weights import rows_of
from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array, Checkpoint


class OnnxEmbeddingAndHead:
    """Embedding rows from the mapped checkpoint; final norm and output head in one session."""

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
        """Float32 hidden states (T, D) of T token ids.

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
