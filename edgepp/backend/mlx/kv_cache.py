"""The KV caches of one sequence in one stage, of any kinds that the model uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from edgepp.backend.kv_layout import NO_LAYOUT, KvLayout
from edgepp.errors import ModelError, StageFault

STEP: int = KVCache.step
"""Positions by which a cache grows."""

_GROUP_SIZES = (64, 32)  # MLX's kernels also have 128, which saves next to nothing


KV_BITS_HINT = "leave out --kv-bits"


@dataclass(frozen=True)
class QuantisedKV:
    """Quantisation of keys and values: groups of ``group_size`` numbers share a scale and a bias."""

    bits: int
    group_size: int

    @classmethod
    def fitting(cls, bits: int, sample: SequenceCache, family: str) -> QuantisedKV:
        """The quantisation with the largest groups that divide the widths in ``sample``, which holds one position.

        Raises:
            ModelError: the family has no cache of all keys and values, or no group size divides their width.
        """
        if not sample.has_plain:
            raise ModelError(
                f"model family '{family}' has no cache of all keys and values, so none to keep in {bits} bits",
                KV_BITS_HINT,
            )
        widths = {array.shape[-1] for cache in sample.own if type(cache) is KVCache for array in arrays_of(cache)}
        for group_size in _GROUP_SIZES:
            if all(width % group_size == 0 for width in widths):
                return cls(bits, group_size)
        raise ModelError(
            f"keys and values of width {' and '.join(map(str, sorted(widths)))} cannot be kept in {bits} bits, "
            f"which takes a multiple of {_GROUP_SIZES[-1]}",
            KV_BITS_HINT,
        )


class SequenceCache:
    """The caches of a stage's layers, and the full cache list to call the model with.

    A family computes masks and positions from some entry of that list, which may belong to a layer of another stage.
    Such an entry is replaced by a cache of the same kind of this stage, which holds as many positions, or else by a
    stand-in, which has only the position.
    """

    def __init__(
        self, model: Any, own_entries: Sequence[int], capacity: int, quantised: QuantisedKV | None = None
    ) -> None:
        self.capacity = capacity
        self.length = 0
        self._entries: list[Any] = make_prompt_cache(model)
        self.has_plain = any(type(entry) is KVCache for entry in self._entries)
        """Whether some cache of the model, in any stage, holds keys and values of all positions and nothing else."""
        if quantised is not None:
            self._entries = [_quantised(entry, quantised) for entry in self._entries]
        self.own = [self._entries[n] for n in own_entries]
        self._stand_ins: list[Any] = []
        by_kind = {_kind(cache): cache for cache in self.own}
        for n in set(range(len(self._entries))) - set(own_entries):
            entry = self._entries[n]
            self._entries[n] = by_kind.get(_kind(entry), entry)
            if self._entries[n] is entry and hasattr(entry, "offset"):
                self._stand_ins.append(entry)

    def model_entries(self) -> list[Any]:
        """The cache list to call the model with; every entry is at the length of the sequence."""
        for cache in self._stand_ins:
            cache.offset = self.length
        return self._entries

    def model_entries_with(self, layers: Sequence[Any], length: int) -> list[Any]:
        """The cache list with ``layers`` in place of the caches of this sequence; stand-ins are at ``length``."""
        by_own = {id(own): layer for own, layer in zip(self.own, layers, strict=True)}
        for cache in self._stand_ins:
            cache.offset = length
        return [by_own.get(id(entry), entry) for entry in self._entries]

    @property
    def is_plain(self) -> bool:
        """Whether every cache holds the keys and values of all positions and nothing else."""
        return bool(self.own) and all(type(cache) in (KVCache, QuantizedKVCache) for cache in self.own)

    def states(self) -> list[Any]:
        """Arrays to evaluate after a step, so that no lazy graph grows from step to step.

        An empty list where all caches are plain: a step's result depends on all that the step adds to these caches.
        """
        return [] if self.is_plain else [cache.state for cache in self.own]

    def parts(self) -> list[list[Any]]:
        """The arrays (1, heads, room, width) of each cache, which must be plain, in the order of ``arrays_of``."""
        return [arrays_of(cache) for cache in self.own]

    def begin_with(self, parts: Sequence[Sequence[Any]], length: int) -> None:
        """Replace the contents by copies of the first ``length`` positions of ``parts``, which are like ``parts()``."""
        copies = [[_beginning(array, length) for array in arrays] for arrays in parts]
        mx.eval(copies)  # before the caches change, since memory may be short
        for cache, arrays in zip(self.own, copies, strict=True):
            cache.keys, cache.values = keys_and_values(arrays)
            cache.offset = length
        self.length = length

    def layout(self, num_layers: int) -> KvLayout:
        """Layout of exported keys and values of ``num_layers`` layers with these caches, which hold one position."""
        forms = {_form(cache) for cache in self.own} if self.is_plain and len(self.own) == num_layers else set()
        if len(forms) != 1:
            return NO_LAYOUT
        numbers, keys, values = forms.pop()
        arrays = arrays_of(self.own[0])
        return KvLayout(numbers, keys, values, tuple(array.itemsize * array.shape[3] for array in arrays))

    def write(self, own: slice, parts: Sequence[Sequence[Any]], start: int) -> None:
        """Write arrays (1, heads, positions, width) of the layers ``own``, whose caches are plain, at ``start``.

        The length of the sequence, and so what the sequence computes, does not change.
        """
        written: list[Any] = []
        for cache, arrays in zip(self.own[own], parts, strict=True):
            stop = start + arrays[0].shape[2]
            if cache.keys is None:
                stored = [_beginning(array, 0, stop) for array in arrays]
            elif (room := arrays_of(cache)[0].shape[2]) < stop:
                stored = [_beginning(array, room, stop) for array in arrays_of(cache)]
            else:
                stored = arrays_of(cache)
            for array, new in zip(stored, arrays, strict=True):
                array[:, :, start:stop] = new
            cache.keys, cache.values = keys_and_values(stored)
            written += stored
        mx.eval(written)

    def fill_to(self, length: int) -> None:
        """Set the length of the sequence to ``length``, up to which ``write`` has written all positions."""
        for cache in self.own:
            cache.offset = length
        self.length = length

    def shrink(self, capacity: int) -> None:
        """Release the memory of plain caches beyond ``capacity`` positions."""
        if self.is_plain and self.length and arrays_of(self.own[0])[0].shape[2] > _room(capacity):
            self.begin_with(self.parts(), self.length)

    def truncate(self, length: int) -> None:
        """Drop the positions from ``length`` on, where 0 < ``length`` < ``self.length``.

        Raises:
            StageFault: a cache of the family cannot be truncated.
        """
        fixed = next((cache for cache in self.own if not _can_truncate(cache)), None)
        if fixed is not None:
            raise StageFault(f"a {type(fixed).__name__} of {self.length} positions cannot go back to {length}")
        for cache in self.own:
            cache.trim(self.length - length)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes that the caches take."""
        return sum(int(cache.nbytes) for cache in self.own if getattr(cache, "keys", cache) is not None)

    def bytes_at(self, length: int) -> int:
        """Bytes that these caches would take at ``length`` positions; they must hold one position now."""
        return sum(_bytes_at(cache, length) for cache in self.own)


def arrays_of(cache: Any) -> list[Any]:
    """The arrays (1, heads, room, width) of a plain cache: those of keys, then as many of values."""
    keys, values = cache.keys, cache.values
    return [*keys, *values] if isinstance(keys, tuple | list) else [keys, values]


def keys_and_values(arrays: Sequence[Any]) -> tuple[Any, Any]:
    """Arrays in the order of ``arrays_of`` as mlx-lm's caches hold them; quantised ones as codes, scales, biases."""
    if len(arrays) == 2:
        return arrays[0], arrays[1]
    half = len(arrays) // 2
    return tuple(arrays[:half]), tuple(arrays[half:])


def _form(cache: Any) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Numbers, and heads and width of keys and of values, of a plain cache."""
    arrays = arrays_of(cache)
    keys, values = (arrays[n].shape[1::2] for n in (0, len(arrays) // 2))
    numbers = str(arrays[-1].dtype).rpartition(".")[2]
    if isinstance(cache, QuantizedKVCache):
        each = 32 // cache.bits  # codes in a uint32
        (keys, values), numbers = (
            ((h, w * each) for h, w in (keys, values)),
            f"{cache.bits}bit/{cache.group_size} {numbers}",
        )
    return numbers, tuple(keys), tuple(values)


def _quantised(cache: Any, quantised: QuantisedKV) -> Any:
    return QuantizedKVCache(quantised.group_size, quantised.bits) if type(cache) is KVCache else cache


def _bytes_at(cache: Any, length: int) -> int:
    if hasattr(cache, "caches"):
        return sum(_bytes_at(inner, length) for inner in cache.caches)
    if not hasattr(cache, "step"):
        return int(cache.nbytes)  # a state whose size does not depend on the length
    positions = min(length, getattr(cache, "max_size", length), getattr(cache, "chunk_size", length))
    steps: int = math.ceil(positions / cache.step)  # caches grow by whole steps
    return int(cache.nbytes) * steps


def _room(length: int) -> int:
    return -(-length // STEP) * STEP


def _beginning(array: Any, length: int, room: int | None = None) -> Any:
    """Copy of the first ``length`` positions, with room for at least ``room`` positions, by default ``length``."""
    more = _room(length if room is None else room) - length
    return mx.pad(array[:, :, :length], [(0, 0), (0, 0), (0, more), (0, 0)])


def _kind(cache: Any) -> tuple[Any, ...]:
    """Key of a cache's kind: caches of one kind that hold the same positions give the same masks and offsets."""
    inner = getattr(cache, "caches", ())
    return (type(cache), getattr(cache, "max_size", None), getattr(cache, "chunk_size", None), *map(_kind, inner))


def _can_truncate(cache: Any) -> bool:
    # a chunked cache that has dropped its first positions still claims to be trimmable
    return bool(cache.is_trimmable()) and not getattr(cache, "start_position", 0)
