"""Decoder layers ``[a, b)`` of an mlx-lm model, with mlx-lm's own KV caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgepp.backend.base import KvChunk
from edgepp.backend.device import GPUS
from edgepp.backend.kv_transfer import KvImports, joined
from edgepp.backend.mlx.arrays import from_numpy, to_numpy
from edgepp.backend.mlx.batch_kv_cache import BatchGroups, rows_by_bucket
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS, CutPoints
from edgepp.backend.mlx.device_memory import check_free, free_bytes
from edgepp.backend.mlx.kv_bytes import arrays_from, bytes_at
from edgepp.backend.mlx.kv_cache import QuantisedKV, SequenceCache
from edgepp.backend.mlx.layer_range_model import LayerRangeModel
from edgepp.backend.step_checks import caches_of, check_fork, check_room, check_rows
from edgepp.errors import StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint

_CHUNKS = {"cpu": 64, "metal": 512, "cuda": 1024}
"""Tokens per prefill chunk with which a device is efficient."""


class MlxStage:
    """Decoder layers of an mlx-lm model with one ``SequenceCache`` per sequence; implements ``StageModel``."""

    interruption = None  # MLX evaluates a step as a whole

    def __init__(
        self,
        model: Any,
        cut_points: CutPoints,
        layers: LayerRange,
        checkpoint: Checkpoint,
        dtype: str,
        device: str,
        kv_bits: int | None = None,
    ) -> None:
        """Take over ``model``, whose weights of ``layers`` are loaded, and run one token through it.

        Raises:
            ModelError: the layers do not run here, need weights outside the range, or cannot use ``kv_bits``.
        """
        self.layers = layers
        self.hidden_size = self._width = checkpoint.hidden_size
        self.dtype = dtype
        self.chunk = min(_CHUNKS[device], checkpoint.context)
        self.device = device
        self._model = LayerRangeModel(model, cut_points, layers, dtype, begin_early=device in GPUS)
        self._max_context = checkpoint.context
        self._sequences: dict[int, SequenceCache] = {}
        self._groups = BatchGroups()
        self._sample = self._model.try_one_token(checkpoint.hidden_size, checkpoint.family)
        if kv_bits is not None:
            self._model.quantised = QuantisedKV.fitting(kv_bits, self._sample, checkpoint.family)
            self._sample = self._model.try_one_token(checkpoint.hidden_size, checkpoint.family)
        self.layout = self._sample.layout(len(layers))
        self.kv_layout = self.layout.name
        self._imports = KvImports(layers, self.layout)
        self._batches_correctly: bool | None = None  # None: not tried yet

    def open(self, sequence: int, capacity: int) -> None:
        """Begin a sequence of at most ``capacity`` positions; an open sequence of the same id is freed first.

        Raises:
            StageFault: the capacity is beyond the model's context, or memory is short.
        """
        self._check_context(capacity)
        self.free(sequence)
        self._check_memory(capacity)
        self._sequences[sequence] = self._model.new_cache(capacity)

    def _check_context(self, capacity: int) -> None:
        if capacity > self._max_context:
            raise StageFault(f"{capacity} positions are more than the model's context of {self._max_context}")

    def _check_memory(self, capacity: int, current: int | None = None) -> None:
        """Raise a StageFault unless free memory that no sequence reserves suffices to grow from ``current``."""
        reserved = sum(self._sample.bytes_at(state.capacity) for state in self._sequences.values())
        free = free_bytes(self.device) - max(0, reserved - self.kv_bytes)
        need = self._sample.bytes_at(capacity) - (0 if current is None else self._sample.bytes_at(current))
        check_free(need, max(0, free), f"{capacity} positions", self.layers)

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the next T positions of the sequence; returns (T, D).

        Raises:
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or memory ran out, and the sequence is dropped.
        """
        (cache,) = self._caches_of([sequence])
        if hidden.ndim != 2 or hidden.shape[0] < 1 or hidden.shape[1] != self.hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self.hidden_size})")
        check_room([sequence], [cache], hidden.shape[0])
        self._imports.forget(sequence)
        try:
            self._groups.separate(cache)
            result = self._model.run(from_numpy(hidden, self.dtype), cache.model_entries())
            computed = to_numpy(result, cache.states())
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._drop_after_failure([cache], error) from error
        cache.length += len(hidden)
        return computed

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """Run row i of ``hidden`` (B, D) at the next position of ``sequences[i]``; returns (B, D).

        Sequences of similar length are computed together, where all caches are plain and a trial gave right numbers.

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the hidden states do not fit; or memory ran out: sequences being computed are dropped, and
                others may be longer by one position.
        """
        check_rows(sequences, hidden, self.hidden_size)
        caches = self._caches_of(sequences)
        check_room(sequences, caches, 1)
        self._imports.forget(*sequences)
        parts = self._parts(caches)
        results = [self._decode_part([sequences[row] for row in rows], hidden[rows]) for rows in parts]
        return np.concatenate(results)[np.argsort(np.concatenate(parts))]

    def _parts(self, caches: Sequence[SequenceCache]) -> list[list[int]]:
        """Rows of a decode step that are computed together."""
        if len(caches) > 1 and self._can_batch():
            return rows_by_bucket([cache.length for cache in caches])
        return [[row] for row in range(len(caches))]

    def _decode_part(self, sequences: Sequence[int], hidden: Array) -> Array:
        if len(sequences) == 1:
            return self.extend(sequences[0], hidden)
        caches = [self._sequences[sequence] for sequence in sequences]
        try:
            group = self._groups.gather(caches)
            order = [caches.index(member) for member in group.members]
            result = self._model.run_batch(group, from_numpy(hidden[order], self.dtype))
            computed = to_numpy(result, group.states())
            for cache in caches:
                cache.length += 1
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._drop_after_failure(caches, error) from error
        return computed[np.argsort(order)]

    def _can_batch(self) -> bool:
        """Whether the family computes a batch correctly, as found by a trial before the first batch."""
        if self._batches_correctly is None:
            self._batches_correctly = self._sample.is_plain and self._model.try_batch(self._width)
        return self._batches_correctly

    def _drop_after_failure(self, caches: Sequence[SequenceCache], error: BaseException) -> StageFault:
        """The error of a failed step; drops ``caches``, which may hold a part of the step, and their groups."""
        positions = " and ".join(str(cache.length) for cache in caches)
        lost = {id(cache) for cache in (*caches, *self._groups.drop_groups_of(caches))}
        self._sequences = {n: cache for n, cache in self._sequences.items() if id(cache) not in lost}
        return StageFault(f"layers {self.layers} failed at position {positions}: {error}")

    def truncate(self, sequence: int, length: int) -> None:
        """Drop every position of a sequence from ``length`` on.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the sequence is shorter, or the caches of the family cannot be truncated.
        """
        (cache,) = self._caches_of([sequence])
        if not 0 <= length <= cache.length:
            raise StageFault(f"a sequence of {cache.length} positions cannot be cut to {length}")
        self._imports.forget(sequence)
        if length == 0:
            self.free(sequence)
            self._sequences[sequence] = self._model.new_cache(cache.capacity)
        elif self._groups.group_of(cache) is not None:
            cache.length = length
        elif length < cache.length:
            cache.truncate(length)

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can be truncated to any length, and forked: all caches are plain."""
        return self._sample.is_plain

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        """Begin ``sequence`` with a copy of the first ``length`` positions of ``source``, which stays in its group.

        Raises:
            SequenceFault: the source is unknown or holds fewer positions.
            StageFault: the caches of the family cannot be truncated, the capacity is beyond the model's context or
                below ``length``, or memory is short.
        """
        (source_cache,) = self._caches_of([source])
        if not self.rewinds:
            raise StageFault(
                f"the caches of layers {self.layers} cannot be truncated, so no other sequence can begin with them"
            )
        check_fork(source, source_cache.length, sequence, length, capacity)
        self.open(sequence, capacity)
        cache = self._sequences[sequence]
        try:
            cache.begin_with(self._groups.parts(source_cache), length)
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._drop_after_failure([cache], error) from error

    def resize(self, sequence: int, capacity: int) -> None:
        """Change the capacity of a sequence to ``capacity`` positions, and release memory beyond it.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the capacity is beyond the model's context or below what the sequence holds, or memory is short.
        """
        (cache,) = self._caches_of([sequence])
        self._check_context(capacity)
        if capacity < cache.length:
            raise StageFault(f"a sequence of {cache.length} positions does not fit {capacity}")
        self._imports.forget(sequence)
        if capacity > cache.capacity:
            self._check_memory(capacity, current=cache.capacity)
        elif self._groups.group_of(cache) is None:
            try:
                cache.shrink(capacity)
            except (RuntimeError, MemoryError) as error:
                raise StageFault(f"memory to copy a sequence of {cache.length} positions is short") from error
        cache.capacity = capacity

    def length(self, sequence: int) -> int:
        """Positions that the cache of the sequence holds.

        Raises:
            SequenceFault: the sequence is unknown.
        """
        return self._caches_of([sequence])[0].length

    def export_kv(self, sequence: int, layers: LayerRange, start: int, stop: int) -> Sequence[KvChunk]:
        """Copy the keys and values of a sequence in ``layers`` at positions [start, stop), as one chunk.

        Raises:
            SequenceFault: the sequence is unknown or holds fewer than ``stop`` positions.
            StageFault: the caches are not plain, the stage lacks the layers, or the positions are not a range.
        """
        (cache,) = self._caches_of([sequence])
        self._imports.check_export(sequence, cache.length, layers, start, stop)
        return [bytes_at(*self._groups.stored(cache, self._own(layers)), start, stop)]

    def import_kv(self, sequence: int, layers: LayerRange, start: int, stop: int, data: Sequence[KvChunk]) -> None:
        """Write keys and values of the same ``kv_layout`` at positions [start, stop) of ``layers``.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: caches, layers, positions or bytes do not fit, and nothing was written; or memory ran out, and
                the sequence is dropped.
        """
        (cache,) = self._caches_of([sequence])
        piece = joined(data)
        self._imports.begin(
            sequence, cache.length, cache.capacity, layers, range(start, stop), memoryview(piece).nbytes
        )
        own = self._own(layers)
        try:
            self._groups.separate(cache)
            cache.write(own, arrays_from(piece, self._sample.parts()[own], stop - start), start)
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._drop_after_failure([cache], error) from error
        self._imports.done(sequence, layers, stop)

    def set_length(self, sequence: int, length: int) -> None:
        """Make ``length`` the number of positions of a sequence; all layers hold or have imported as many.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: some layer has fewer positions; nothing changed.
        """
        (cache,) = self._caches_of([sequence])
        self._imports.check_length(sequence, cache.length, length)
        if length <= cache.length:
            self.truncate(sequence, length)
        else:
            self._imports.forget(sequence)
            self._groups.separate(cache)
            cache.fill_to(length)

    def free(self, sequence: int) -> None:
        """Release the cache of a sequence; an unknown sequence is ignored."""
        self._imports.forget(sequence)
        cache = self._sequences.pop(sequence, None)
        if cache is not None:
            self._groups.drop(cache)

    @property
    def kv_bytes(self) -> int:
        """Bytes that the KV caches of all open sequences take."""
        return sum(cache.nbytes for cache in self._sequences.values()) + self._groups.nbytes

    def _own(self, layers: LayerRange) -> slice:
        return slice(layers.start - self.layers.start, layers.stop - self.layers.start)

    def _caches_of(self, sequences: Sequence[int]) -> list[SequenceCache]:
        return caches_of(sequences, self._sequences, self.layers)
