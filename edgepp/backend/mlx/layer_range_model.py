"""Decoder layers ``[a, b)`` of an mlx-lm model, run by calling the whole model with taps in place of the others."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx

from edgepp.backend.mlx.arrays import DTYPES
from edgepp.backend.mlx.cut_points import Anatomy, PassEnded, Tap
from edgepp.backend.mlx.kv_cache import QuantisedKV, SequenceCache
from edgepp.layers import LayerRange


class LayerRangeModel:
    """The layers of one range; their hidden states are ``dtype``."""

    def __init__(self, model: Any, anatomy: Anatomy, layers: LayerRange, dtype: str) -> None:
        """Take over ``model``, whose weights of ``layers`` are loaded."""
        self._model = model
        self._layers = layers
        self._dtype = DTYPES[dtype]
        self._mine = [anatomy.entries[n] for n in range(layers.start, layers.stop) if n in anatomy.entries]
        self.quantised: QuantisedKV | None = None
        """How new caches keep keys and values, where not as they are computed."""
        self._arriving: Any = None
        self._leaving: Any = None
        self._place_taps(anatomy.layers)

    def _place_taps(self, layers: list[Any]) -> None:
        kept = list(layers)
        first, last = self._layers.start, self._layers.stop - 1

        def skip(hidden: Any, *_: Any, **__: Any) -> Any:
            return hidden

        def enter(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            hidden, self._arriving = self._arriving, None
            return kept[first](hidden, *args, **kwargs)

        def leave(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            self._leaving = (enter if last == first else kept[last])(hidden, *args, **kwargs)
            raise PassEnded

        layers[:] = [kept[n] if n in self._layers else Tap(kept[n], skip) for n in range(len(kept))]
        layers[first] = Tap(kept[first], enter)
        layers[last] = Tap(kept[last], leave)

    def cache(self, capacity: int) -> SequenceCache:
        """Empty caches for a sequence of ``capacity`` positions."""
        return SequenceCache(self._model, self._mine, capacity, self.quantised)

    def forward(self, cache: SequenceCache, hidden: Any) -> Any:
        """Evaluated hidden states (1, T, D) behind the last layer; ``cache`` advances by T."""
        result = self.run(hidden, cache.at_length())
        mx.eval(result, cache.states())
        cache.length += hidden.shape[1]
        return result

    def run(self, hidden: Any, entries: list[Any]) -> Any:
        """Hidden states (B, T, D) behind the last layer, not evaluated, with the model's cache list ``entries``."""
        self._arriving = hidden
        with suppress(PassEnded):
            self._model(mx.zeros(hidden.shape[:2], mx.int32), cache=entries)
        result, self._leaving = self._leaving.astype(self._dtype), None
        return result
