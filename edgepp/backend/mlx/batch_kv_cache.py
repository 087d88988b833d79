"""KV caches of sequences that decode together: a row each in the same arrays, every row as long as its sequence.

mlx-lm's own batch cache pads rows on the left to one length, so it copies all of them whenever one comes or goes.
Here whoever comes or goes is copied, and at most one other, who takes the row that was left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache

from edgepp.backend.mlx.kv_cache import STEP, SequenceCache, arrays_of, keys_and_values

_FIRST = 4 * STEP


def bucket_length(length: int) -> int:
    """The most positions of sequences that decode together with one of ``length``: rows are as long as the longest."""
    most: int = _FIRST
    while most < length:
        most *= 4
    return most


class BatchGroup:
    """The rows of some sequences, in the order of ``members``, each of which has at least one position."""

    def __init__(self, members: Sequence[SequenceCache]) -> None:
        self.members: list[SequenceCache] = []
        self.positions: Any = None
        """Each row's next position, (B,)."""
        self.longest = 0
        """Positions that the longest row will have after the next step."""
        self._layers = [_layer(self, cache) for cache in members[0].own]
        self._rows = self._room = 0
        self._reserve(len(members), max(member.length for member in members) + 1)
        for member in members:
            self.join(member)

    def join(self, member: SequenceCache) -> None:
        """Take a sequence's keys and values over."""
        self._reserve(len(self.members) + 1, member.length + 1)
        for layer, cache in zip(self._layers, member.own, strict=True):
            layer.write(len(self.members), arrays_of(cache), member.length)
            cache.keys = cache.values = None
        self.members.append(member)

    def leave(self, member: SequenceCache) -> None:
        """Give a sequence its keys and values back."""
        member.begin_with(self.parts(member), member.length)
        self.drop(member)

    def parts(self, member: SequenceCache) -> list[list[Any]]:
        """See ``SequenceCache.parts``."""
        row = self.members.index(member)
        return [layer.row(row) for layer in self._layers]

    def drop(self, member: SequenceCache) -> None:
        """Forget a sequence; the last one takes its row."""
        row, last = self.members.index(member), self.members.pop()
        if last is not member:
            self.members[row] = last
            n = len(self.members)
            for layer in self._layers:
                layer.write(row, layer.row(n), last.length)
        if self.members and 2 * len(self.members) <= self._rows:
            self._resize(len(self.members), self._room)
        mx.eval(self.states())

    def at_length(self) -> list[Any]:
        """The list to call the model with for one row a member."""
        lengths = [member.length for member in self.members]
        self._reserve(len(lengths), max(lengths) + 1)
        self.positions, self.longest = mx.array(lengths), max(lengths) + 1
        return self.members[0].standing_in(self._layers, max(lengths))

    def states(self) -> list[Any]:
        """Everything to evaluate after a step."""
        return [array for layer in self._layers for array in layer.arrays]

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
            mx.eval(layer.arrays)  # one by one: more would be in memory twice at a time
        self._rows, self._room = rows, room


class BatchGroups:
    """A stage's groups, none of them empty; a sequence is in at most one."""

    def __init__(self) -> None:
        self._groups: list[BatchGroup] = []

    def of(self, cache: SequenceCache) -> BatchGroup | None:
        """The group that a sequence is in."""
        return next((group for group in self._groups if cache in group.members), None)

    def parts(self, cache: SequenceCache) -> list[list[Any]]:
        """See ``SequenceCache.parts``; wherever they lie."""
        group = self.of(cache)
        return cache.parts() if group is None else group.parts(cache)

    def bring_together(self, caches: Sequence[SequenceCache]) -> BatchGroup:
        """The group that holds most of ``caches``, brought to hold just these."""
        group = max(self._groups, key=lambda group: _common(group, caches), default=None)
        if group is None or not _common(group, caches):
            group = BatchGroup(caches)
            self._groups.append(group)
        for member in [member for member in group.members if member not in caches]:
            group.leave(member)
        for cache in caches:
            if cache not in group.members:
                self.set_apart(cache)
                group.join(cache)
        return group

    def set_apart(self, cache: SequenceCache) -> None:
        """Let a sequence have its keys and values to itself."""
        group = self.of(cache)
        if group is not None:
            group.leave(cache)
            self._forget_empty(group)

    def drop(self, cache: SequenceCache) -> None:
        """Forget a sequence."""
        group = self.of(cache)
        if group is not None:
            group.drop(cache)
            self._forget_empty(group)

    def forget_with(self, caches: Sequence[SequenceCache]) -> list[SequenceCache]:
        """Forget the groups that any of ``caches`` is in; returns all who were in them."""
        broken = [group for group in self._groups if _common(group, caches)]
        self._groups = [group for group in self._groups if group not in broken]
        return [member for group in broken for member in group.members]

    @property
    def nbytes(self) -> int:
        """Bytes that the rows of all groups take."""
        return sum(group.nbytes for group in self._groups)

    def _forget_empty(self, group: BatchGroup) -> None:
        if not group.members:
            self._groups.remove(group)


def _common(group: BatchGroup, caches: Sequence[SequenceCache]) -> int:
    return sum(cache in group.members for cache in caches)


class _Layer:
    """One layer's keys and values (rows, heads, room, width); to mlx-lm's models it is a cache."""

    def __init__(self, group: BatchGroup, like: Any) -> None:
        self._group = group
        self.arrays = [array[:0] for array in arrays_of(like)]

    @property
    def offset(self) -> Any:
        """Each row's next position, (B,)."""
        return self._group.positions

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Append one position (B, heads, 1, D) to each row; returns what the rows hold."""
        n, positions = keys.shape[0], self._group.positions
        rows = mx.arange(n)
        for array, new in zip(self.arrays, self._stored(keys, values), strict=True):
            array[rows, :, positions] = new[:, :, 0]
        return keys_and_values([array[:n, :, : self._group.longest] for array in self.arrays])

    def _stored(self, keys: Any, values: Any) -> list[Any]:
        return [keys, values]

    def make_mask(self, _n: int, window_size: int | None = None, **_: Any) -> Any:
        """Which positions each row's next one sees, (B, 1, 1, positions)."""
        next_one = self.offset[:, None, None, None]
        seen = mx.arange(self._group.longest)
        mask = seen <= next_one
        return mask & (seen > next_one - window_size) if window_size else mask

    def row(self, row: int) -> list[Any]:
        """A row's arrays, (1, heads, room, width)."""
        return [array[row : row + 1] for array in self.arrays]

    def write(self, row: int, arrays: Sequence[Any], length: int) -> None:
        """Put ``length`` positions of a sequence into a row."""
        for mine, array in zip(self.arrays, arrays, strict=True):
            mine[row : row + 1, :, :length] = array[:, :, :length]

    def resize(self, rows: int, room: int, held: int, used: int) -> None:
        """Make it ``rows`` of ``room`` positions, with ``used`` positions of the first ``held`` rows kept."""
        self.arrays = [_resized(array, rows, room, held, used) for array in self.arrays]


class _QuantisedLayer(_Layer):
    """The same in few bits; by ``bits`` mlx-lm's attention knows that it gets codes, scales and biases."""

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
