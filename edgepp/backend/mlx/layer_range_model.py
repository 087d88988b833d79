"""Decoder layers ``[a, b)`` of an mlx-lm model, run by calling the whole model with taps in place of the others."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx

from edgepp.backend.mlx.arrays import DTYPES, begin
from edgepp.backend.mlx.batch_kv_cache import BatchGroup
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS, CutPoints, PassEnded, Tap, damaged_weights, unsupported_family
from edgepp.backend.mlx.kv_cache import KV_BITS_HINT, QuantisedKV, SequenceCache
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.printable import one_line

_LAYERS_AT_ONCE = 4
"""Number of layers that a GPU begins with while the graph of the next layers is built."""


class LayerRangeModel:
    """The layers of one range, ready to run; returned hidden states have ``dtype``."""

    def __init__(
        self, model: Any, cut_points: CutPoints, layers: LayerRange, dtype: str, *, begin_early: bool = False
    ) -> None:
        """Put taps into ``model``, whose weights of ``layers`` are loaded; nothing else may use the model.

        With ``begin_early`` the device computes the first layers while the graph of later ones is built, which takes a
        GPU nearly as long as computing them for one token.
        """
        self._begin_early = begin_early
        self._model = model
        self._layers = layers
        self.dtype = DTYPES[dtype]
        """MLX's dtype of hidden states."""
        self._own_entries = [
            cut_points.cache_entries[n] for n in range(layers.start, layers.stop) if n in cut_points.cache_entries
        ]
        self.quantised: QuantisedKV | None = None
        """Quantisation of keys and values in new caches; None stores keys and values as they are computed."""
        self._input: Any = None
        self._output: Any = None
        self._place_taps(cut_points.layers)

    def _place_taps(self, layers: list[Any]) -> None:
        originals = list(layers)
        self._own_layers = originals[self._layers.start : self._layers.stop]
        first, last = self._layers.start, self._layers.stop - 1

        def skip(hidden: Any, *_: Any, **__: Any) -> Any:
            return hidden

        def enter(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            hidden, self._input = self._input, None
            return originals[first](hidden, *args, **kwargs)

        def leave(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            self._output = (enter if last == first else originals[last])(hidden, *args, **kwargs)
            raise PassEnded

        def beginning(layer: Any) -> Any:
            def call(hidden: Any, *args: Any, **kwargs: Any) -> Any:
                result = layer(hidden, *args, **kwargs)
                begin(result)
                return result

            return Tap(layer, call)

        own = list(originals)
        if self._begin_early:
            for n in range(first + _LAYERS_AT_ONCE, last, _LAYERS_AT_ONCE):
                own[n] = beginning(originals[n])
        self.own = own[first : last + 1]
        """The layers of the range as callables, some of which let the device begin before later layers are called."""
        self.plain_own = originals[first : last + 1]
        """The layers of the range without taps."""
        layers[:] = [own[n] if n in self._layers else Tap(originals[n], skip) for n in range(len(originals))]
        layers[first] = Tap(originals[first], enter)
        layers[last] = Tap(originals[last], leave)

    def new_cache(self, capacity: int) -> SequenceCache:
        """Empty caches for a sequence of at most ``capacity`` positions."""
        return SequenceCache(self._model, self._own_entries, capacity, self.quantised)

    def forward(self, cache: SequenceCache, hidden: Any) -> Any:
        """Evaluated hidden states (1, T, D) after the last layer of the range; ``cache`` grows by T positions."""
        result = self.run(hidden, cache.model_entries())
        mx.eval(result, cache.states())
        cache.length += hidden.shape[1]
        return result

    def forward_batch(self, group: BatchGroup, hidden: Any) -> Any:
        """Run ``hidden`` (1, B, D) at the next position of each member; returns evaluated hidden states (1, B, D)."""
        result = self.run_batch(group, hidden)
        mx.eval(result, group.states())
        for member in group.members:
            member.length += 1
        return result

    def try_one_token(self, hidden_size: int, family: str) -> SequenceCache:
        """Run one token; returns its caches of one position, from which the bytes of longer caches follow.

        Raises:
            ModelError: the layers do not run, or give numbers that are not finite.
        """
        cache = self.new_cache(1)
        hidden = mx.arange(hidden_size)[None, None].astype(self.dtype) / hidden_size
        try:
            result = self.forward(cache, hidden)
            finite = result.shape == hidden.shape and mx.isfinite(result).all().item()
        except (*FORWARD_ERRORS, MemoryError) as error:
            how = "on this machine" if self.quantised is None else f"with keys and values in {self.quantised.bits} bits"
            hint = "" if self.quantised is None else KV_BITS_HINT
            raise ModelError(
                f"layers {self._layers} of family '{family}' do not run {how}: {one_line(str(error), 200)}", hint
            ) from error
        if not finite:
            raise damaged_weights(self._own_layers) or unsupported_family(
                family, f"layers {self._layers} compute numbers that are not finite, or need weights of other layers"
            )
        return cache

    def try_batch(self, hidden_size: int) -> bool:
        """Whether sequences of 1 and 3 positions decode together to the same numbers as alone, up to rounding."""
        hidden = mx.random.normal((4, 3, hidden_size), key=mx.random.key(0)).astype(self.dtype)
        tolerance = 1e-4 if self.dtype == mx.float32 and self.quantised is None else 0.05
        try:
            caches = [self.new_cache(5) for _ in range(4)]
            for n, cache in enumerate(caches):
                self.forward(cache, hidden[:1] if n % 2 else hidden[1:2, :1])
            together = BatchGroup(caches[2:])
            for rows in (hidden[2:3, :2], hidden[3:, :2]):
                alone = [self.forward(cache, rows[:, n : n + 1]) for n, cache in enumerate(caches[:2])]
                expected = mx.concatenate(alone, axis=1)
                error = mx.abs(self.forward_batch(together, rows) - expected).max()
                if not (error <= tolerance * mx.abs(expected).max()).item():
                    return False
        except FORWARD_ERRORS:
            return False
        return True

    def run_batch(self, group: BatchGroup, hidden: Any) -> Any:
        """Hidden states (1, B, D) of the next position of each member, not evaluated; the lengths of members stay."""
        return self.run(hidden[0][:, None], group.model_entries()).reshape(hidden.shape)

    def run(self, hidden: Any, entries: list[Any]) -> Any:
        """Hidden states (B, T, D) after the last layer of the range, not evaluated; ``entries`` is the cache list."""
        self._input = hidden
        with suppress(PassEnded):
            self._model(mx.zeros(hidden.shape[:2], mx.int32), cache=entries)
        result, self._output = self._output.astype(self.dtype), None
        return result
