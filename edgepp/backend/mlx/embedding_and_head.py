"""Embedding, final norm and output head of an mlx-lm model; taps replace its decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from edgepp.backend.device import has_gpu
from edgepp.backend.mlx.arrays import DTYPES, from_numpy, to_numpy
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS, CutPoints, PassEnded, Tap, damaged_weights, unsupported_family
from edgepp.backend.mlx.device_logits import ComputedLogits
from edgepp.errors import ModelError, StageFault, UsageError
from edgepp.model.weights.checkpoint import Array, Checkpoint


class MlxEmbeddingAndHead:
    """The whole model with taps as layers; implements ``EmbeddingAndHead``."""

    any_thread = False

    def __init__(
        self, model: Any, cut_points: CutPoints, checkpoint: Checkpoint, dtype: str, *, head_later: bool = False
    ) -> None:
        """Put taps into ``model``, whose weights outside the layers are loaded, and try embedding and head.

        ``head_later``: try the head, which reads its weights, only before its first use.

        Raises:
            ModelError: the embedding needs more than tokens and positions, or the head more than hidden states.
        """
        self._model = model
        self._dtype = dtype
        self._on_gpu = has_gpu()
        self._family = checkpoint.family
        self.vocabulary = checkpoint.vocab_size
        self._hidden_size = checkpoint.hidden_size
        self._cache = make_prompt_cache(model)
        self._embedded: Any = None
        self._last_hidden: Any = None
        self._checking = True
        """Whether the head has not been tried yet."""
        self._layers = cut_points.layers
        last = len(self._layers) - 1
        self._taps = [Tap(layer, self._tap_call(n == last)) for n, layer in enumerate(self._layers)]
        self._layers[:] = self._taps
        self.positional = self._embeds_positions()
        if not head_later:
            self._check_head()

    def _tap_call(self, last: bool) -> Any:
        """The call of a tap: ends a pass that embeds; in a pass for logits the last layer gives the hidden states."""

        def call(hidden: Any, *_: Any, **__: Any) -> Any:
            if self._last_hidden is None:
                self._embedded = hidden
                raise PassEnded
            if last:
                return self._last_hidden
            return mx.full(hidden.shape, float("nan"), hidden.dtype) if self._checking else hidden

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
            return to_numpy(self.embedded(mx.array(ids, mx.int32), position or 0))
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise StageFault(f"embedding {ids.size} tokens failed: {error}") from error

    def embedded(self, ids: Any, position: int) -> Any:
        """Hidden states (1, T, D) of ids (T,) on the device, the first at ``position``; they are not evaluated."""
        for cache in self._cache:
            if hasattr(cache, "offset"):
                cache.offset = position
        with suppress(PassEnded):
            self._model(ids[None], cache=self._cache)
        hidden, self._embedded = self._embedded, None
        return hidden

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of the hidden states (T, D) of the last layer; ``DeviceLogits`` on a GPU.

        Raises:
            StageFault: the hidden states do not fit the model, or memory ran out.
            ModelError: the head, which was not tried yet, needs more than hidden states.
        """
        if hidden.ndim != 2 or hidden.shape[1] != self._hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self._hidden_size})")
        if self._checking:
            self._check_head()
        try:
            found = self.logits_of(from_numpy(hidden, self._dtype))
            if self._on_gpu:
                mx.eval(*found.arrays)
                return cast("Array", found.rows(range(len(hidden))))
            return np.asarray(found.logits)
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise StageFault(f"the output head failed: {error}") from error

    def logits_of(self, hidden: Any) -> ComputedLogits:
        """Float32 logits (T, V) of hidden states (1, T, D) on the device; they are not evaluated."""
        tokens = mx.zeros(hidden.shape[:2], mx.int32)
        return ComputedLogits(self._logits(tokens, hidden.astype(DTYPES[self._dtype]))[0])

    def logits_through(self, layers: Sequence[Any], ids: Any, entries: Sequence[Any]) -> Any:
        """Float32 logits (B, V) of ids (B,) at the next position of each sequence; they are not evaluated.

        ``layers`` are all layers of the model, and ``entries`` its cache list, which holds the sequences.
        """
        self._layers[:] = layers
        try:
            return self._model(ids[:, None], cache=entries)[:, -1].astype(mx.float32)
        finally:
            self._layers[:] = self._taps

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
        one = mx.array([1], mx.int32)
        second = self.embedded(mx.array([0, 1], mx.int32), 0)[0, 1]
        if _same(self.embedded(one, 0)[0, 0], second):
            return False
        if _same(self.embedded(one, 1)[0, 0], second):
            return True
        raise self._damaged() or unsupported_family(self._family, "its embedding looks at earlier tokens")

    def _damaged(self) -> ModelError | None:
        self._layers[:] = []  # layers of other processes have no weights here
        return damaged_weights([self._model])

    def _check_head(self) -> None:
        """Check that logits depend on the last hidden states only: tokens differ, and earlier hidden states are NaN.

        Raises:
            ModelError: the logits depend on more.
        """
        width = self._hidden_size
        hidden = mx.broadcast_to(mx.arange(width).astype(mx.float32) / width, (2, 1, width))
        logits = self._logits(mx.array([[0], [1]]), hidden)
        if logits.shape[:2] != (2, 1) or not _same(logits[0], logits[1]):
            raise self._damaged() or unsupported_family(
                self._family, "its output head needs more than the last layer's hidden states"
            )
        self._checking = False


def _same(a: Any, b: Any) -> bool:
    return bool(mx.allclose(a, b, rtol=1e-3, atol=1e-6).item())  # false for NaN
