"""KV caches of sequences that decode together: one row per sequence in shared arrays, filled from position 0 on.

mlx-lm's own batch cache pads rows on the left to one length, so all rows are copied whenever a sequence joins or
leaves. In a ``BatchGroup`` only the sequence that joins or leaves is copied, and at most one other, which takes the
free row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache

from edgepp.backend.mlx.kv_cache import STEP, SequenceCache, arrays_of, keys_and_values

_FIRST_BUCKET = 4 * STEP


def bucket_length(length: int) -> int:
    """Largest length of a sequence that may decode together with one of ``length``; both in positions.

    Each row has the length of the longest sequence, so sequences of very different lengths would waste memory and time.
    """
    bucket: int = _FIRST_BUCKET
    while bucket < length:
        bucket *= 4
    return bucket


def rows_by_bucket(lengths: Sequence[int]) -> list[list[int]]:
    """Rows that are computed together, given the ``lengths`` of all rows in positions; an empty sequence is alone."""
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        buckets.setdefault(bucket_length(length + 1) if length else -row, []).append(row)
    return list(buckets.values())


class BatchGroup:
    """Arrays with one row per sequence, in the order of ``members``; each sequence has at least one position."""

    def __init__(self, members: Sequence[SequenceCache]) -> None:
        self.members: list[SequenceCache] = []
        self.positions: Any = None
        """The next position of each row, (B,)."""
        self.longest = 0
        """Positions of the longest row after the next step."""
        self._layers = [_layer(self, cache) for cache in members[0].own]
        self._rows = self._room = 0
        self._reserve(len(members), max(member.length for member in members) + 1)
        for member in members:
            self.join(member)

    def join(self, member: SequenceCache) -> None:
        """Move the keys and values of a sequence into a row."""
        self._reserve(len(self.members) + 1, member.length + 1)
        for layer, cache in zip(self._layers, member.own, strict=True):
            layer.write(len(self.members), arrays_of(cache), member.length)
            cache.keys = cache.values = None
        self.members.append(member)

    def leave(self, member: SequenceCache) -> None:
        """Move the keys and values of a sequence back into its own cache."""
        member.begin_with(self.parts(member), member.length)
        self.drop(member)

    def parts(self, member: SequenceCache) -> list[list[Any]]:
        """The arrays (1, heads, room, width) of each layer for a sequence, like ``SequenceCache.parts``."""
        row = self.members.index(member)
        return [layer.row(row) for layer in self._layers]

    def drop(self, member: SequenceCache) -> None:
        """Drop a sequence; the last row moves to its place."""
        row, last = self.members.index(member), self.members.pop()
        if last is not member:
            self.members[row] = last
            n = len(self.members)
            for layer in self._layers:
                layer.write(row, layer.row(n), last.length)
        if self.members and 2 * len(self.members) <= self._rows:
            self._resize(len(self.members), self._room)
        mx.eval(self.states())

    def model_entries(self) -> list[Any]:
        """The cache list to call the model with, for one row per member."""
        lengths = [member.length for member in self.members]
        self._reserve(len(lengths), max(lengths) + 1)
        self.positions, self.longest = mx.array(lengths), max(lengths) + 1
        return self.members[0].model_entries_with(self._layers, max(lengths))

    def states(self) -> list[Any]:
        """Arrays to evaluate after a step."""
        return self.arrays(slice(None))

    def arrays(self, own: slice) -> list[Any]:
        """The arrays (rows, heads, room, width) of the layers ``own``, in the order of ``arrays_of``."""
        return [array for layer in self._layers[own] for array in layer.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        return sum(int(array.nbytes) for array in self.states())

    def _reserve(self, rows: int, positions: int) -> None:
        if rows > self._rows or positions > self._room:
            more_rows = max(rows, self._rows * 3 // 2) if rows > self._rows else self._rows
            more_room = max(positions, self._room * 5 // 4) if positions > self._room else self._room
            self._resize(more_rows, -(-more_room // STEP) * STEP)

    def _resize(self, rows: int, room: int) -> None:
        used = max((member.length for member in self.members), default=0)
        for layer in self._layers:
            layer.resize(rows, room, len(self.members), used)
            mx.eval(layer.arrays)  # one by one, so that only one layer is in memory twice
        self._rows, self._room = rows, room


class BatchGroups:
    """The groups of a stage, none of them empty; a sequence is in at most one group."""

    def __init__(self) -> None:
        self._groups: list[BatchGroup] = []

    def group_of(self, cache: SequenceCache) -> BatchGroup | None:
        """The group of a sequence, or None."""
        return next((group for group in self._groups if cache in group.members), None)

    def parts(self, cache: SequenceCache) -> list[list[Any]]:
        """The arrays of each layer for a sequence, from its group or its own cache; see ``arrays_of`` for shapes."""
        group = self.group_of(cache)
        return cache.parts() if group is None else group.parts(cache)

    def stored(self, cache: SequenceCache, own: slice) -> tuple[list[Any], int]:
        """The arrays (rows, heads, room, width) of the layers ``own`` that hold a sequence, and its row in them."""
        group = self.group_of(cache)
        if group is None:
            return [array for part in cache.own[own] for array in arrays_of(part)], 0
        return group.arrays(own), group.members.index(cache)

    def gather(self, caches: Sequence[SequenceCache]) -> BatchGroup:
        """A group of exactly ``caches``, made of the group that holds most of them."""
        group = max(self._groups, key=lambda group: _num_common(group, caches), default=None)
        if group is None or not _num_common(group, caches):
            group = BatchGroup(caches)
            self._groups.append(group)
        for member in [member for member in group.members if member not in caches]:
            group.leave(member)
        for cache in caches:
            if cache not in group.members:
                self.separate(cache)
                group.join(cache)
        return group

    def separate(self, cache: SequenceCache) -> None:
        """Move the keys and values of a sequence back into its own cache, if a group holds them."""
        group = self.group_of(cache)
        if group is not None:
            group.leave(cache)
            self._remove_if_empty(group)

    def drop(self, cache: SequenceCache) -> None:
        """Drop a sequence from its group, if it is in one."""
        group = self.group_of(cache)
        if group is not None:
            group.drop(cache)
            self._remove_if_empty(group)

    def drop_groups_of(self, caches: Sequence[SequenceCache]) -> list[SequenceCache]:
        """Drop the groups that hold any of ``caches``; returns the members of these groups."""
        broken = [group for group in self._groups if _num_common(group, caches)]
        self._groups = [group for group in self._groups if group not in broken]
        return [member for group in broken for member in group.members]

    @property
    def nbytes(self) -> int:
        """Bytes that the rows of all groups take."""
        return sum(group.nbytes for group in self._groups)

    def _remove_if_empty(self, group: BatchGroup) -> None:
        if not group.members:
            self._groups.remove(group)


def _num_common(group: BatchGroup, caches: Sequence[SequenceCache]) -> int:
    return sum(cache in group.members for cache in caches)


class _Layer:
    """Keys and values of one layer, (rows, heads, room, width), with the interface of mlx-lm's caches."""

    def __init__(self, group: BatchGroup, like: Any) -> None:
        self._group = group
        self.arrays = [array[:0] for array in arrays_of(like)]

    @property
    def offset(self) -> Any:
        """The next position of each row, (B,)."""
        return self._group.positions

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Append one position (B, heads, 1, width) to each row; returns the keys and values of all positions."""
        n, positions = keys.shape[0], self._group.positions
        rows = mx.arange(n)
        for array, new in zip(self.arrays, self._stored(keys, values), strict=True):
            array[rows, :, positions] = new[:, :, 0]
        return keys_and_values([array[:n, :, : self._group.longest] for array in self.arrays])

    def _stored(self, keys: Any, values: Any) -> list[Any]:
        return [keys, values]

    def make_mask(self, _n: int, window_size: int | None = None, **_: Any) -> Any:
        """Mask of the positions to which the next position of each row attends, bool (B, 1, 1, positions)."""
        next_position = self.offset[:, None, None, None]
        seen = mx.arange(self._group.longest)
        mask = seen <= next_position
        return mask & (seen > next_position - window_size) if window_size else mask

    def row(self, row: int) -> list[Any]:
        """The arrays of a row, (1, heads, room, width)."""
        return [array[row : row + 1] for array in self.arrays]

    def write(self, row: int, arrays: Sequence[Any], length: int) -> None:
        """Copy ``length`` positions of a sequence into a row."""
        for target, array in zip(self.arrays, arrays, strict=True):
            target[row : row + 1, :, :length] = array[:, :, :length]

    def resize(self, rows: int, room: int, held: int, used: int) -> None:
        """Resize to ``rows`` rows of ``room`` positions; ``used`` positions of the first ``held`` rows are kept."""
        self.arrays = [_resized(array, rows, room, held, used) for array in self.arrays]


class _QuantisedLayer(_Layer):
    """Quantised keys and values; mlx-lm's attention expects codes, scales and biases of caches with ``bits``."""

    def __init__(self, group: BatchGroup, like: QuantizedKVCache) -> None:
        super().__init__(group, like)
        self.bits, self.group_size = like.bits, like.group_size

    def _stored(self, keys: Any, values: Any) -> list[Any]:
        return [
            array for part in (keys, values) for array in mx.quantize(part, group_size=self.group_size, bits=self.bits)
        ]


def _layer(group: BatchGroup, like: Any) -> _Layer:
    return _QuantisedLayer(group, like) if isinstance(like, QuantizedKVCache) else _Layer(group, like)


def _resized(array: Any, rows: int, room: int, held: int, used: int) -> Any:
    _, heads, _, width = array.shape
    new = mx.zeros((rows, heads, room, width), array.dtype)
    if held:
        new[:held, :, :used] = array[:held, :, :used]
    return new
