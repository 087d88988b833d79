"""Decoder layers ``[a, b)`` of an mlx-lm model, with mlx-lm's own KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import numpy as np
import psutil

from edgepp.backend.base import SequenceFault, check_rows
from edgepp.backend.mlx_arrays import DTYPES, from_numpy, to_numpy
from edgepp.backend.mlx_batch import Group, alike
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
        self._groups: list[Group] = []
        self._arriving: Any = None
        self._leaving: Any = None
        self._place_taps(anatomy.layers)
        self._sample = self._try_one_token(checkpoint.family)
        self._batches: bool | None = None  # not tried yet

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
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or memory ran out, after which the sequence is forgotten.
        """
        (cache,) = self._known([sequence])
        if hidden.ndim != 2 or hidden.shape[0] < 1 or hidden.shape[1] != self.hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self.hidden_size})")
        self._check_room([sequence], hidden.shape[0])
        try:
            self._set_apart(cache)
            return to_numpy(self._forward(cache, from_numpy(hidden, self.dtype)))
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._failed([cache], error) from error

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """See ``StageModel.decode``.

        Sequences of similar length are computed together. Families go one by one whose caches are of another kind than
        the plain one, or that a trial shows to get batches wrong.

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the hidden states do not fit; or memory ran out, after which those that were being computed are
                forgotten, and others may be one position on.
        """
        check_rows(sequences, hidden, self.hidden_size)
        self._known(sequences)
        self._check_room(sequences, 1)
        results: list[Array] = [hidden] * len(sequences)
        for rows in self._parts(sequences):
            part = [sequences[row] for row in rows]
            result = self._decode_together(part, hidden[rows]) if len(part) > 1 else self.extend(part[0], hidden[rows])
            for row, computed in zip(rows, result, strict=True):
                results[row] = computed
        return np.stack(results)

    def _parts(self, sequences: Sequence[int]) -> list[list[int]]:
        """Rows to compute together: sequences of similar length, none of them empty."""
        parts: dict[int, list[int]] = {}
        alone = []
        for row, sequence in enumerate(sequences):
            length = self._sequences[sequence].length
            if length and len(sequences) > 1 and self._can_batch():
                parts.setdefault(alike(length + 1), []).append(row)
            else:
                alone.append([row])
        return [*parts.values(), *alone]

    def _decode_together(self, sequences: Sequence[int], hidden: Array) -> Array:
        caches = [self._sequences[sequence] for sequence in sequences]
        try:
            group = self._group_of(caches)
            order = [caches.index(member) for member in group.members]
            computed = to_numpy(self._step(group, from_numpy(hidden[order], self.dtype)))
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._failed(caches, error) from error
        result = np.empty_like(computed)
        result[order] = computed
        return result

    def _group_of(self, caches: list[SequenceCache]) -> Group:
        """The group that holds most of ``caches``, brought to hold just these."""
        group = max(self._groups, key=lambda group: _common(group, caches), default=None)
        if group is None or not _common(group, caches):
            group = Group(caches)
            self._groups.append(group)
        for member in [member for member in group.members if member not in caches]:
            group.leave(member)
        for cache in caches:
            if cache not in group.members:
                self._set_apart(cache)
                group.join(cache)
        return group

    def _step(self, group: Group, hidden: Any) -> Any:
        """Evaluated hidden states (1, B, D) of one position of each member, from their ``hidden`` (1, B, D)."""
        result = self._through(hidden[0][:, None], group.at_length())
        mx.eval(result, group.states())
        for member in group.members:
            member.length += 1
        return result.reshape(hidden.shape)

    def _can_batch(self) -> bool:
        """Whether the family computes a batch right, tried out before the first one."""
        if self._batches is None:
            self._batches = self._sample.is_plain and self._try_batch()
        return self._batches

    def _try_batch(self) -> bool:
        """Whether two sequences of 1 and 3 positions decode together as they do alone."""
        hidden = mx.random.normal((4, 3, self.hidden_size), key=mx.random.key(0)).astype(DTYPES[self.dtype])
        tolerance = 1e-4 if self.dtype == "float32" else 0.05
        try:
            caches = [SequenceCache(self._model, self._mine, 5) for _ in range(4)]
            for n, cache in enumerate(caches):
                self._forward(cache, hidden[:1] if n % 2 else hidden[1:2, :1])
            together = Group(caches[2:])
            for rows in (hidden[2:3, :2], hidden[3:, :2]):
                alone = [self._forward(cache, rows[:, n : n + 1]) for n, cache in enumerate(caches[:2])]
                expected = mx.concatenate(alone, axis=1)
                error = mx.abs(self._step(together, rows) - expected).max()
                if not (error <= tolerance * mx.abs(expected).max()).item():
                    return False
        except FORWARD_ERRORS:
            return False
        return True

    def _failed(self, caches: Sequence[SequenceCache], error: BaseException) -> StageFault:
        """Forget sequences whose caches may hold a part of a step, and those in one group with them."""
        positions = " and ".join(str(cache.length) for cache in caches)
        broken = [group for group in self._groups if _common(group, caches)]
        lost = {id(cache) for cache in (*caches, *(member for group in broken for member in group.members))}
        self._groups = [group for group in self._groups if group not in broken]
        self._sequences = {n: cache for n, cache in self._sequences.items() if id(cache) not in lost}
        return StageFault(f"layers {self.layers} failed at position {positions}: {error}")

    def _forward(self, cache: SequenceCache, hidden: Any) -> Any:
        """Evaluated hidden states (1, T, D) behind the last layer; ``cache`` advances by T."""
        result = self._through(hidden, cache.at_length())
        mx.eval(result, cache.states())
        cache.length += hidden.shape[1]
        return result

    def _through(self, hidden: Any, entries: list[Any]) -> Any:
        self._arriving = hidden
        with suppress(Passed):
            self._model(mx.zeros(hidden.shape[:2], mx.int32), cache=entries)
        result, self._leaving = self._leaving.astype(DTYPES[self.dtype]), None
        return result

    def truncate(self, sequence: int, length: int) -> None:
        """See ``StageModel.truncate``."""
        (cache,) = self._known([sequence])
        if not 0 <= length <= cache.length:
            raise StageFault(f"a sequence of {cache.length} positions cannot be cut to {length}")
        if length == 0:
            self.free(sequence)
            self._sequences[sequence] = SequenceCache(self._model, self._mine, cache.capacity)
        elif self._grouped(cache) is not None:
            cache.length = length
        elif length < cache.length:
            cache.truncate(length)

    def length(self, sequence: int) -> int:
        """See ``StageModel.length``."""
        return self._known([sequence])[0].length

    def free(self, sequence: int) -> None:
        """See ``StageModel.free``; freeing what is not open does nothing."""
        cache = self._sequences.pop(sequence, None)
        group = self._grouped(cache)
        if cache is not None and group is not None:
            group.drop(cache)
            self._forget_empty(group)

    @property
    def kv_bytes(self) -> int:
        """See ``StageModel.kv_bytes``."""
        alone = sum(cache.nbytes for cache in self._sequences.values())
        return alone + sum(group.nbytes for group in self._groups)

    def _grouped(self, cache: SequenceCache | None) -> Group | None:
        return next((group for group in self._groups if cache in group.members), None)

    def _set_apart(self, cache: SequenceCache) -> None:
        """Let a sequence have its keys and values to itself."""
        group = self._grouped(cache)
        if group is not None:
            group.leave(cache)
            self._forget_empty(group)

    def _forget_empty(self, group: Group) -> None:
        if not group.members:
            self._groups.remove(group)

    def _known(self, sequences: Sequence[int]) -> list[SequenceCache]:
        unknown = tuple(n for n in sequences if n not in self._sequences)
        if unknown:
            raise SequenceFault(f"layers {self.layers} hold no sequence {', '.join(map(str, unknown))}", unknown)
        return [self._sequences[n] for n in sequences]

    def _check_room(self, sequences: Sequence[int], positions: int) -> None:
        caches = {n: self._sequences[n] for n in sequences}
        full = tuple(n for n, cache in caches.items() if cache.length + positions > cache.capacity)
        if full:
            cache = caches[full[0]]
            raise SequenceFault(
                f"{cache.length + positions} positions are more than the sequence's {cache.capacity}", full
            )


def _common(group: Group, caches: Sequence[SequenceCache]) -> int:
    return sum(cache in group.members for cache in caches)
