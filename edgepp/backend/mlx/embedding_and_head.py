"""Embedding, final norm and output head of an mlx-lm model; taps replace its decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from edgepp.backend.mlx.arrays import from_numpy, to_numpy
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS, CutPoints, PassEnded, Tap, unsupported_family
from edgepp.errors import StageFault, UsageError
from edgepp.model.weights.checkpoint import Array, Checkpoint


class MlxEmbeddingAndHead:
    """Runs the whole model with taps as layers; implements ``EmbeddingAndHead``."""

    def __init__(self, model: Any, cut_points: CutPoints, checkpoint: Checkpoint, dtype: str) -> None:
        """Put taps into ``model``, whose weights outside the layers are loaded, and try embedding and head.

        Raises:
            ModelError: the embedding needs more than tokens and positions, or the head more than the last hidden
            states.
        """
        self._model = model
        self._dtype = dtype
        self._family = checkpoint.family
        self.vocabulary = checkpoint.vocab_size
        self._hidden_size = checkpoint.hidden_size
        self._cache = make_prompt_cache(model)
        self._embedded: Any = None
        self._last_hidden: Any = None
        last = len(cut_points.layers) - 1
        cut_points.layers[:] = [Tap(layer, self._tap_call(n == last)) for n, layer in enumerate(cut_points.layers)]
        self.positional = self._embeds_positions()
        self._check_head()

    def _tap_call(self, last: bool) -> Any:
        """The call of a tap: ends a pass that embeds; in a pass for logits the last layer gives the hidden states."""

        def call(hidden: Any, *_: Any, **__: Any) -> Any:
            if self._last_hidden is None:
                self._embedded = hidden
                raise PassEnded
            return (
                self._last_hidden if last else mx.full(self._last_hidden.shape, float("nan"), self._last_hidden.dtype)
            )

        return call

    def embed(self, tokens: Sequence[int], position: int | None = None) -> Array:
        """Hidden states (T, D) of T token ids, the first of which is at ``position`` of its sequence.

        Raises:
            UsageError: a token id is outside the vocabulary.
            ModelError: the family embeds positions, and ``position`` is None.
            StageFault: memory ran out.
        """
        ids = np.asarray(tokens, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise UsageError(f"token ids must be from 0 to {self.vocabulary - 1}")
        if self.positional and position is None:
            raise unsupported_family(self._family, "it embeds positions, which were not given")
        try:
            return to_numpy(self._embed(ids, position or 0))
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise StageFault(f"embedding {ids.size} tokens failed: {error}") from error

    def _embed(self, ids: Any, position: int) -> Any:
        for cache in self._cache:
            if hasattr(cache, "offset"):
                cache.offset = position
        with suppress(PassEnded):
            self._model(mx.array(ids, mx.int32)[None], cache=self._cache)
        hidden, self._embedded = self._embedded, None
        return hidden

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of the hidden states (T, D) of the last layer.

        Raises:
            StageFault: the hidden states do not fit the model, or memory ran out.
        """
        if hidden.ndim != 2 or hidden.shape[1] != self._hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self._hidden_size})")
        try:
            tokens = mx.zeros((1, hidden.shape[0]), mx.int32)
            return to_numpy(self._logits(tokens, from_numpy(hidden, self._dtype)))
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise StageFault(f"the output head failed: {error}") from error

    def _logits(self, tokens: Any, hidden: Any) -> Any:
        self._last_hidden = hidden
        try:
            return self._model(tokens, cache=self._cache).astype(mx.float32)
        finally:
            self._last_hidden = None

    def _embeds_positions(self) -> bool:
        """Whether the embedding of a token depends on its position.

        Raises:
            ModelError: the embedding depends on earlier tokens.
        """
        second = self._embed([0, 1], 0)[0, 1]
        if _same(self._embed([1], 0)[0, 0], second):
            return False
        if _same(self._embed([1], 1)[0, 0], second):
            return True
        raise unsupported_family(self._family, "its embedding looks at earlier tokens")

    def _check_head(self) -> None:
        """Check that logits depend on the last hidden states only: tokens differ, and earlier hidden states are NaN.

        Raises:
            ModelError: the logits depend on more.
        """
        width = self._hidden_size
        hidden = mx.broadcast_to(mx.arange(width).astype(mx.float32) / width, (2, 1, width))
        logits = self._logits(mx.array([[0], [1]]), hidden)
        if logits.shape[:2] != (2, 1) or not _same(logits[0], logits[1]):
            raise unsupported_family(self._family, "its output head needs more than the last layer's hidden states")


def _same(a: Any, b: Any) -> bool:
    return bool(mx.allclose(a, b, rtol=1e-3, atol=1e-6).item())  # false for NaN
