"""Decoder layers ``[a, b)`` of an mlx-lm model, with mlx-lm's own KV caches."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx
import psutil

from edgepp.backend.mlx_arrays import DTYPES, from_numpy, to_numpy
from edgepp.backend.mlx_cache import SequenceCache
from edgepp.backend.mlx_taps import FORWARD_ERRORS, Anatomy, Passed, Tap, unfit
from edgepp.errors import ModelError, StageFault
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Array, Checkpoint

_MIB = 1 << 20


class MlxStage:
    """See ``StageModel``."""

    def __init__(
        self, model: Any, anatomy: Anatomy, layers: LayerRange, checkpoint: Checkpoint, dtype: str, device: str
    ) -> None:
        """Take over ``model``, whose weights of ``layers`` are loaded, and run one token through it.

        Raises:
            ModelError: the layers do not run here, or need weights outside the range.
        """
        self.layers = layers
        self.hidden_size = checkpoint.hidden_size
        self.dtype = dtype
        self.chunk = 512 if device == "metal" else 64
        self.device = device
        self._model = model
        self._context = checkpoint.context
        self._mine = [anatomy.entries[n] for n in range(layers.start, layers.stop) if n in anatomy.entries]
        self._sequences: dict[int, SequenceCache] = {}
        self._arriving: Any = None
        self._leaving: Any = None
        self._place_taps(anatomy.layers)
        self._sample = self._try_one_token(checkpoint.family)

    def _place_taps(self, layers: list[Any]) -> None:
        kept = list(layers)
        first, last = self.layers.start, self.layers.stop - 1

        def skip(hidden: Any, *_: Any, **__: Any) -> Any:
            return hidden

        def enter(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            hidden, self._arriving = self._arriving, None
            return kept[first](hidden, *args, **kwargs)

        def leave(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            self._leaving = (enter if last == first else kept[last])(hidden, *args, **kwargs)
            raise Passed

        layers[:] = [kept[n] if n in self.layers else Tap(kept[n], skip) for n in range(len(kept))]
        layers[first] = Tap(kept[first], enter)
        layers[last] = Tap(kept[last], leave)

    def _try_one_token(self, family: str) -> SequenceCache:
        """Caches that hold one position, from which the bytes of longer ones follow."""
        cache = SequenceCache(self._model, self._mine, 1)
        hidden = mx.arange(self.hidden_size)[None, None].astype(DTYPES[self.dtype]) / self.hidden_size
        try:
            result = self._forward(cache, hidden)
            finite = result.shape == hidden.shape and mx.isfinite(result).all().item()
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise ModelError(f"layers {self.layers} of family '{family}' do not run here: {error}") from error
        if not finite:
            raise unfit(family, f"layers {self.layers} need weights from outside the range")
        return cache

    def open(self, sequence: int, capacity: int) -> None:
        """See ``StageModel.open``; a sequence that is open already starts anew."""
        if capacity > self._context:
            raise StageFault(f"{capacity} positions are more than the model's context of {self._context}")
        self.free(sequence)
        promised = sum(self._sample.bytes_at(state.capacity) for state in self._sequences.values())
        free = psutil.virtual_memory().available - max(0, promised - self.kv_bytes)
        need = self._sample.bytes_at(capacity)
        if need > free:
            raise StageFault(
                f"{capacity} positions need {need // _MIB} MiB of KV cache in layers "
                f"{self.layers}, where {max(0, free) // _MIB} MiB are free",
                "ask for a shorter answer, or give the stage fewer layers",
            )
        self._sequences[sequence] = SequenceCache(self._model, self._mine, capacity)

    def extend(self, sequence: int, hidden: Array) -> Array:
        """See ``StageModel.extend``.

        Raises:
            StageFault: the sequence is unknown or full, the hidden states do not fit, or memory ran out,
                after which the sequence is forgotten.
        """
        cache = self._held(sequence)
        if hidden.ndim != 2 or hidden.shape[0] < 1 or hidden.shape[1] != self.hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self.hidden_size})")
        if cache.length + hidden.shape[0] > cache.capacity:
            raise StageFault(
                f"{cache.length + hidden.shape[0]} positions are more than the sequence's {cache.capacity}"
            )
        try:
            return to_numpy(self._forward(cache, from_numpy(hidden, self.dtype)))
        except (*FORWARD_ERRORS, MemoryError) as error:
            self.free(sequence)  # its caches may hold a part of the step
            raise StageFault(f"layers {self.layers} failed at position {cache.length}: {error}") from error

    def _forward(self, cache: SequenceCache, hidden: Any) -> Any:
        """Evaluated hidden states (1, T, D) behind the last layer; ``cache`` advances by T."""
        self._arriving = hidden
        with suppress(Passed):
            self._model(mx.zeros(hidden.shape[:2], mx.int32), cache=cache.at_length())
        result, self._leaving = self._leaving.astype(DTYPES[self.dtype]), None
        mx.eval(result, cache.states())
        cache.length += hidden.shape[1]
        return result

    def truncate(self, sequence: int, length: int) -> None:
        """See ``StageModel.truncate``."""
        cache = self._held(sequence)
        if not 0 <= length <= cache.length:
            raise StageFault(f"a sequence of {cache.length} positions cannot be cut to {length}")
        if length == 0:
            self._sequences[sequence] = SequenceCache(self._model, self._mine, cache.capacity)
        elif length < cache.length:
            cache.truncate(length)

    def length(self, sequence: int) -> int:
        """See ``StageModel.length``."""
        return self._held(sequence).length

    def free(self, sequence: int) -> None:
        """See ``StageModel.free``; freeing what is not open does nothing."""
        self._sequences.pop(sequence, None)

    @property
    def kv_bytes(self) -> int:
        """See ``StageModel.kv_bytes``."""
        return sum(cache.nbytes for cache in self._sequences.values())

    def _held(self, sequence: int) -> SequenceCache:
        cache = self._sequences.get(sequence)
        if cache is None:
            raise StageFault(f"layers {self.layers} hold no sequence {sequence}")
        return cache
