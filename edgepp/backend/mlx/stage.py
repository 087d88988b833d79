"""Decoder layers ``[a, b)`` of an mlx-lm model, with mlx-lm's own KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import psutil

from edgepp.backend.base import SequenceFault, check_fork, check_rows
from edgepp.backend.mlx.arrays import DTYPES, from_numpy, to_numpy
from edgepp.backend.mlx.batch_kv_cache import BatchGroup, BatchGroups, bucket_length
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS, Anatomy, unfit
from edgepp.backend.mlx.kv_cache import QuantisedKV, SequenceCache
from edgepp.backend.mlx.layer_range_model import LayerRangeModel
from edgepp.errors import ModelError, StageFault
from edgepp.layers import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.printable import one_line

_MIB = 1 << 20


class MlxStage:
    """See ``StageModel``."""

    def __init__(
        self,
        model: Any,
        anatomy: Anatomy,
        layers: LayerRange,
        checkpoint: Checkpoint,
        dtype: str,
        device: str,
        kv_bits: int | None = None,
    ) -> None:
        """Take over ``model``, whose weights of ``layers`` are loaded, and run one token through it.

        Raises:
            ModelError: the layers do not run here, need weights outside the range, or do not do with ``kv_bits``.
        """
        self.layers = layers
        self.hidden_size = checkpoint.hidden_size
        self.dtype = dtype
        self.chunk = 512 if device == "metal" else 64
        self.device = device
        self._part = LayerRangeModel(model, anatomy, layers, dtype)
        self._context = checkpoint.context
        self._sequences: dict[int, SequenceCache] = {}
        self._groups = BatchGroups()
        self._sample = self._try_one_token(checkpoint.family)
        if kv_bits is not None:
            self._part.quantised = QuantisedKV.fitting(kv_bits, self._sample, checkpoint.family)
            self._sample = self._try_one_token(checkpoint.family)
        self._batches: bool | None = None  # not tried yet

    def _try_one_token(self, family: str) -> SequenceCache:
        """Caches that hold one position, from which the bytes of longer ones follow."""
        cache = self._part.cache(1)
        hidden = mx.arange(self.hidden_size)[None, None].astype(DTYPES[self.dtype]) / self.hidden_size
        try:
            result = self._part.forward(cache, hidden)
            finite = result.shape == hidden.shape and mx.isfinite(result).all().item()
        except (*FORWARD_ERRORS, MemoryError) as error:
            kept, hint = self._part.quantised, "leave the KV cache as it is"
            how, hint = ("here", "") if kept is None else (f"with keys and values in {kept.bits} bits", hint)
            raise ModelError(
                f"layers {self.layers} of family '{family}' do not run {how}: {one_line(str(error), 200)}", hint
            ) from error
        if not finite:
            raise unfit(family, f"layers {self.layers} need weights from outside the range")
        return cache

    def open(self, sequence: int, capacity: int) -> None:
        """See ``StageModel.open``; a sequence that is open already starts anew."""
        self._check_context(capacity)
        self.free(sequence)
        self._promise(capacity)
        self._sequences[sequence] = self._part.cache(capacity)

    def _check_context(self, capacity: int) -> None:
        if capacity > self._context:
            raise StageFault(f"{capacity} positions are more than the model's context of {self._context}")

    def _promise(self, capacity: int, instead_of: int | None = None) -> None:
        """See to it that there is memory for ``capacity`` positions more, or for them instead of fewer.

        Raises:
            StageFault: with what is promised to the open sequences there is not.
        """
        promised = sum(self._sample.bytes_at(state.capacity) for state in self._sequences.values())
        free = psutil.virtual_memory().available - max(0, promised - self.kv_bytes)
        need = self._sample.bytes_at(capacity) - (0 if instead_of is None else self._sample.bytes_at(instead_of))
        if need > max(0, free):
            raise StageFault(
                f"{capacity} positions need {need // _MIB} MiB of KV cache in layers "
                f"{self.layers}, where {max(0, free) // _MIB} MiB are free",
                "ask for a shorter answer, or give the stage fewer layers",
            )

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
            self._groups.set_apart(cache)
            return to_numpy(self._part.forward(cache, from_numpy(hidden, self.dtype)))
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
                parts.setdefault(bucket_length(length + 1), []).append(row)
            else:
                alone.append([row])
        return [*parts.values(), *alone]

    def _decode_together(self, sequences: Sequence[int], hidden: Array) -> Array:
        caches = [self._sequences[sequence] for sequence in sequences]
        try:
            group = self._groups.bring_together(caches)
            order = [caches.index(member) for member in group.members]
            computed = to_numpy(self._step(group, from_numpy(hidden[order], self.dtype)))
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._failed(caches, error) from error
        result = np.empty_like(computed)
        result[order] = computed
        return result

    def _step(self, group: BatchGroup, hidden: Any) -> Any:
        """Evaluated hidden states (1, B, D) of one position of each member, from their ``hidden`` (1, B, D)."""
        result = self._part.run(hidden[0][:, None], group.at_length())
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
        tolerance = 1e-4 if self.dtype == "float32" and self._part.quantised is None else 0.05
        try:
            caches = [self._part.cache(5) for _ in range(4)]
            for n, cache in enumerate(caches):
                self._part.forward(cache, hidden[:1] if n % 2 else hidden[1:2, :1])
            together = BatchGroup(caches[2:])
            for rows in (hidden[2:3, :2], hidden[3:, :2]):
                alone = [self._part.forward(cache, rows[:, n : n + 1]) for n, cache in enumerate(caches[:2])]
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
        lost = {id(cache) for cache in (*caches, *self._groups.forget_with(caches))}
        self._sequences = {n: cache for n, cache in self._sequences.items() if id(cache) not in lost}
        return StageFault(f"layers {self.layers} failed at position {positions}: {error}")

    def truncate(self, sequence: int, length: int) -> None:
        """See ``StageModel.truncate``."""
        (cache,) = self._known([sequence])
        if not 0 <= length <= cache.length:
            raise StageFault(f"a sequence of {cache.length} positions cannot be cut to {length}")
        if length == 0:
            self.free(sequence)
            self._sequences[sequence] = self._part.cache(cache.capacity)
        elif self._groups.of(cache) is not None:
            cache.length = length
        elif length < cache.length:
            cache.truncate(length)

    @property
    def rewinds(self) -> bool:
        """See ``StageModel.rewinds``."""
        return self._sample.is_plain

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        """See ``StageModel.fork``; a source that decodes together with others goes on doing so.

        Raises:
            SequenceFault: the source is unknown or holds fewer positions.
            StageFault: the family's caches cannot be cut, the capacity is beyond the model's context or below
                ``length``, or memory is short.
        """
        (origin,) = self._known([source])
        if not self.rewinds:
            raise StageFault(f"the caches of layers {self.layers} cannot be cut, so no other sequence begins with them")
        check_fork(source, origin.length, sequence, length, capacity)
        self.open(sequence, capacity)
        cache = self._sequences[sequence]
        try:
            cache.begin_with(self._groups.parts(origin), length)
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._failed([cache], error) from error

    def resize(self, sequence: int, capacity: int) -> None:
        """See ``StageModel.resize``.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the capacity is beyond the model's context or below what the sequence holds, or memory is short.
        """
        (cache,) = self._known([sequence])
        self._check_context(capacity)
        if capacity < cache.length:
            raise StageFault(f"a sequence of {cache.length} positions does not fit {capacity}")
        if capacity > cache.capacity:
            self._promise(capacity, instead_of=cache.capacity)
        elif self._groups.of(cache) is None:
            try:
                cache.give_back_room(capacity)
            except (RuntimeError, MemoryError) as error:
                raise StageFault(f"memory to copy a sequence of {cache.length} positions is short") from error
        cache.capacity = capacity

    def length(self, sequence: int) -> int:
        """See ``StageModel.length``."""
        return self._known([sequence])[0].length

    def free(self, sequence: int) -> None:
        """See ``StageModel.free``; freeing what is not open does nothing."""
        cache = self._sequences.pop(sequence, None)
        if cache is not None:
            self._groups.drop(cache)

    @property
    def kv_bytes(self) -> int:
        """See ``StageModel.kv_bytes``."""
        alone = sum(cache.nbytes for cache in self._sequences.values())
        return alone + self._groups.nbytes

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
