"""One sequence's KV caches, of whatever kinds its model uses, as a stage's part of the model needs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from edgepp.errors import ModelError, StageFault

STEP: int = KVCache.step
"""Positions that a cache makes room for at a time."""

_GROUP_SIZES = (64, 32)  # what MLX's kernels know, but for 128, which saves next to nothing


@dataclass(frozen=True)
class QuantisedKV:
    """How keys and values are kept: in groups of ``group_size`` that share a scale and a bias."""

    bits: int
    group_size: int

    @classmethod
    def fitting(cls, bits: int, sample: SequenceCache, family: str) -> QuantisedKV:
        """The largest groups for caches like ``sample``, which holds one position.

        Raises:
            ModelError: the family has no cache that can be kept so.
        """
        if not sample.has_plain:
            raise ModelError(
                f"model family '{family}' has no cache of all keys and values, so none to keep in {bits} bits",
                "leave the KV cache as it is",
            )
        widths = {array.shape[-1] for cache in sample.own if type(cache) is KVCache for array in arrays_of(cache)}
        for group_size in _GROUP_SIZES:
            if all(width % group_size == 0 for width in widths):
                return cls(bits, group_size)
        raise ModelError(
            f"keys and values of width {' and '.join(map(str, sorted(widths)))} cannot be kept in {bits} bits, "
            f"which takes a multiple of {_GROUP_SIZES[-1]}",
            "leave the KV cache as it is",
        )


class SequenceCache:
    """The caches of a stage's layers, and a list for the model in which they stand where it looks for them.

    Masks and positions come from whichever entry of that list a family happens to read, which may belong to
    another stage's layer. There stands one of our own caches of the same kind, which holds as many positions, or
    else a stand-in that knows only the position.
    """

    def __init__(self, model: Any, mine: Sequence[int], capacity: int, quantised: QuantisedKV | None = None) -> None:
        self.capacity = capacity
        self.length = 0
        self._entries: list[Any] = make_prompt_cache(model)
        self.has_plain = any(type(entry) is KVCache for entry in self._entries)
        """Whether some cache of the model, in whichever stage, just holds all positions' keys and values."""
        if quantised is not None:
            self._entries = [_quantised(entry, quantised) for entry in self._entries]
        self.own = [self._entries[n] for n in mine]
        self._stand_ins: list[Any] = []
        alike = {_kind(cache): cache for cache in self.own}
        for n in set(range(len(self._entries))) - set(mine):
            entry = self._entries[n]
            self._entries[n] = alike.get(_kind(entry), entry)
            if self._entries[n] is entry and hasattr(entry, "offset"):
                self._stand_ins.append(entry)

    def at_length(self) -> list[Any]:
        """The list to call the model with, every entry of which is at the sequence's length."""
        for cache in self._stand_ins:
            cache.offset = self.length
        return self._entries

    def standing_in(self, layers: Sequence[Any], length: int) -> list[Any]:
        """A list to call the model with, in which ``layers`` stand where our own caches do; all are at ``length``."""
        by_own = {id(own): layer for own, layer in zip(self.own, layers, strict=True)}
        for cache in self._stand_ins:
            cache.offset = length
        return [by_own.get(id(entry), entry) for entry in self._entries]

    @property
    def is_plain(self) -> bool:
        """Whether every cache just holds all positions' keys and values."""
        return bool(self.own) and all(type(cache) in (KVCache, QuantizedKVCache) for cache in self.own)

    def states(self) -> list[Any]:
        """Everything to evaluate after a step, lest graphs grow from step to step."""
        return [cache.state for cache in self.own]

    def parts(self) -> list[list[Any]]:
        """Each plain layer's ``arrays_of``."""
        return [arrays_of(cache) for cache in self.own]

    def begin_with(self, parts: Sequence[Sequence[Any]], length: int) -> None:
        """Hold the first ``length`` positions of such ``parts`` as copies, in no more room than they need."""
        copies = [[_beginning(array, length) for array in arrays] for arrays in parts]
        mx.eval(copies)  # before anything changes here: memory may be short
        for cache, arrays in zip(self.own, copies, strict=True):
            cache.keys, cache.values = keys_and_values(arrays)
            cache.offset = length
        self.length = length

    def give_back_room(self, capacity: int) -> None:
        """Give back what plain caches have room for beyond ``capacity`` positions."""
        if self.is_plain and self.length and arrays_of(self.own[0])[0].shape[2] > _room(capacity):
            self.begin_with(self.parts(), self.length)

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on, where 0 < ``length`` < ``self.length``.

        Raises:
            StageFault: a cache of the family cannot go back.
        """
        stuck = next((cache for cache in self.own if not _goes_back(cache)), None)
        if stuck is not None:
            raise StageFault(f"a {type(stuck).__name__} of {self.length} positions cannot go back to {length}")
        for cache in self.own:
            cache.trim(self.length - length)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes that the caches take."""
        return sum(int(cache.nbytes) for cache in self.own if getattr(cache, "keys", cache) is not None)

    def bytes_at(self, length: int) -> int:
        """Bytes that these caches, which hold one position, would take at ``length`` positions."""
        return sum(_bytes_at(cache, length) for cache in self.own)


def arrays_of(cache: Any) -> list[Any]:
    """A plain cache's arrays (1, heads, room, width): those of its keys, then as many of its values."""
    return [array for _, array in tree_flatten((cache.keys, cache.values))]


def keys_and_values(arrays: Sequence[Any]) -> tuple[Any, Any]:
    """Such arrays as mlx-lm's caches hold them; of quantised keys there are codes, scales and biases."""
    if len(arrays) == 2:
        return arrays[0], arrays[1]
    half = len(arrays) // 2
    return tuple(arrays[:half]), tuple(arrays[half:])


def _quantised(cache: Any, how: QuantisedKV) -> Any:
    return QuantizedKVCache(how.group_size, how.bits) if type(cache) is KVCache else cache


def _bytes_at(cache: Any, length: int) -> int:
    if hasattr(cache, "caches"):
        return sum(_bytes_at(inner, length) for inner in cache.caches)
    if not hasattr(cache, "step"):
        return int(cache.nbytes)  # a state whose size does not depend on the length
    most = min(length, getattr(cache, "max_size", length), getattr(cache, "chunk_size", length))
    steps: int = math.ceil(most / cache.step)  # it grows by whole steps
    return int(cache.nbytes) * steps


def _room(length: int) -> int:
    return -(-length // STEP) * STEP


def _beginning(array: Any, length: int) -> Any:
    return mx.pad(array[:, :, :length], [(0, 0), (0, 0), (0, _room(length) - length), (0, 0)])


def _kind(cache: Any) -> tuple[Any, ...]:
    """Caches of one kind that hold the same positions give the same masks and offsets."""
    inner = getattr(cache, "caches", ())
    return (type(cache), getattr(cache, "max_size", None), getattr(cache, "chunk_size", None), *map(_kind, inner))


def _goes_back(cache: Any) -> bool:
    # a chunked cache that has dropped its front still says that it can be trimmed
    return bool(cache.is_trimmable()) and not getattr(cache, "start_position", 0)
