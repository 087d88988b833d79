"""A whole model in one process on a GPU, which computes one step ahead of the engine.

A step that is evaluated and drawn from before the next one begins leaves the GPU idle meanwhile. So while the host
takes the token of a step, the GPU computes the next step already, with the token that it draws itself: the largest
logit. Where the engine draws the same token, the result is ready or nearly ready; else the step ahead is dropped.

The engine passes arrays of one number per row from ``embed`` to ``extend`` and on to ``logits``: token ids, then
numbers of results. Hidden states and logits stay on the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

from edgepp.backend.mlx.ahead_policy import AheadPolicy
from edgepp.backend.mlx.arrays import begin
from edgepp.backend.mlx.cut_points import FORWARD_ERRORS
from edgepp.backend.mlx.device_logits import ComputedLogits, DeviceLogits
from edgepp.backend.mlx.embedding_and_head import MlxEmbeddingAndHead
from edgepp.backend.mlx.kv_cache import SequenceCache
from edgepp.backend.mlx.stage import MlxStage
from edgepp.backend.step_checks import check_room, check_rows
from edgepp.errors import StageFault, UsageError
from edgepp.model.weights.checkpoint import Array

MAX_IDS = 1 << 24
"""Limit of token ids and of numbers of results, which are sent as float32: integers up to it are exact."""
_CHUNK = 2048
"""Tokens per prefill chunk; an H200 is 1.04 to 1.51 times as fast as with half as many (bench/LOG.md)."""
_KEPT_RESULTS = 8
"""Steps whose results are kept; the engine asks for the logits of a step before it sends many more."""


@dataclass
class _Result:
    """Result of a step of some rows: ``hidden`` (1, T, D) of a chunk, or the ``logits`` of one row per sequence."""

    first: int
    """Number of the first row of the result."""
    rows: int
    sequences: tuple[int, ...]
    hidden: Any = None
    logits: ComputedLogits | None = None


@dataclass
class _Ahead:
    """A step that the GPU computes before the engine asks for it."""

    sequence: int
    token: int | None
    """Token that the step computes; None until the host knows the token."""
    logits: ComputedLogits


class OneAheadStage(MlxStage):
    """All layers of a model, with its embedding and head; implements ``StageModel`` for rows of one number."""

    _ends: MlxEmbeddingAndHead

    def join(self, ends: MlxEmbeddingAndHead) -> OneAheadEnds:
        """Take over the model's ``ends``; returns the ends that the engine uses in their place."""
        self._ends = ends
        self.hidden_size, self.dtype = 1, "float32"
        self.chunk = min(_CHUNK, self._max_context)
        self._results: deque[_Result] = deque(maxlen=_KEPT_RESULTS)
        self._next_number = 0
        self._ahead: _Ahead | None = None
        self._policies: dict[int, AheadPolicy] = {}
        return OneAheadEnds(self, ends)

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run token ids (T, 1) at the next T positions of the sequence; returns float32 numbers of results (T, 1).

        Raises:
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the ids do not fit, or memory ran out, and the sequence is dropped.
        """
        ids = _ids(hidden, self._ends.vocabulary)
        if len(ids) > 1:
            return self._extend_chunk(sequence, ids)
        logits = self._take_ahead(sequence, ids[0])
        (cache,) = self._caches_of([sequence])
        try:
            if logits is None:
                check_room([sequence], [cache], 1)
                self._imports.forget(sequence)
                self._groups.separate(cache)
                logits = self._begin(cache, mx.array(ids, mx.int32), self._model.own)
            policy = self._policies.setdefault(sequence, AheadPolicy())
            ahead = None
            if policy.take(ids[0]) and self.rewinds and cache.length < cache.capacity:
                ahead = _Ahead(sequence, None, self._begin(cache, logits.tokens, self._model.plain_own))
            policy.drawn = int(logits.on_host[0][0])  # waits for the GPU
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._drop_after_failure([cache], error) from error
        if ahead is not None:
            ahead.token, self._ahead = policy.drawn, ahead
        return self._numbered(_Result(0, 1, (sequence,), logits=logits))

    def _begin(self, cache: SequenceCache, token: Any, layers: Sequence[Any]) -> ComputedLogits:
        """Let the GPU compute ``token`` (1,) at the next position; returns the logits, not evaluated."""
        logits = ComputedLogits(self._ends.logits_through(layers, token, cache.model_entries()))
        begin(*logits.arrays, cache.states())
        cache.length += 1
        return logits

    def _extend_chunk(self, sequence: int, ids: list[int]) -> Array:
        (cache,) = self._caches_of([sequence])
        check_room([sequence], [cache], len(ids))
        self._imports.forget(sequence)
        try:
            self._groups.separate(cache)
            hidden = self._ends.embedded(mx.array(ids, mx.int32), cache.length).astype(self._model.dtype)
            result = self._model.run(hidden, cache.model_entries())
            mx.eval(result, cache.states())
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._drop_after_failure([cache], error) from error
        cache.length += len(ids)
        self._policies[sequence] = AheadPolicy()
        return self._numbered(_Result(0, len(ids), (sequence,), hidden=result))

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """Run the token id in row i of (B, 1) at the next position of ``sequences[i]``; returns result numbers (B, 1).

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the ids do not fit; or memory ran out, and sequences that were being computed are dropped.
        """
        check_rows(sequences, hidden, 1)
        if len(sequences) == 1:
            return self.extend(sequences[0], hidden)
        ids = _ids(hidden, self._ends.vocabulary)
        caches = self._caches_of(sequences)
        check_room(sequences, caches, 1)
        self._imports.forget(*sequences)
        try:
            rows, order = [], []
            for part in self._parts(caches):
                computed, members = self._begin_part([(caches[row], ids[row]) for row in part])
                rows.append(computed)
                order += [caches.index(member) for member in members]
            together = rows[0] if len(rows) == 1 else mx.concatenate(rows)
            if order != list(range(len(order))):
                together = together[mx.array(np.argsort(order))]
            logits = ComputedLogits(together)
            mx.eval(*logits.arrays)
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise self._drop_after_failure(caches, error) from error
        for sequence, drawn in zip(sequences, logits.on_host[0].tolist(), strict=True):
            self._policies.setdefault(sequence, AheadPolicy()).drawn = drawn
        return self._numbered(_Result(0, len(ids), tuple(sequences), logits=logits))

    def _parts(self, caches: Sequence[SequenceCache]) -> list[list[int]]:
        return [[row] for row in range(len(caches))] if self._ends.positional else super()._parts(caches)

    def _begin_part(self, part: Sequence[tuple[SequenceCache, int]]) -> tuple[Any, Sequence[SequenceCache]]:
        """Let the GPU compute an id at the next position of each cache: logits (B, V), and the cache of each row."""
        caches = [cache for cache, _ in part]
        if len(caches) == 1:
            self._groups.separate(caches[0])
            members, entries, states = caches, caches[0].model_entries(), caches[0].states
        else:
            group = self._groups.gather(caches)
            members, entries, states = list(group.members), group.model_entries(), group.states
        ids = mx.array([part[caches.index(member)][1] for member in members], mx.int32)
        logits = self._ends.logits_through(self._model.own, ids, entries)
        begin(logits, states())
        for cache in caches:
            cache.length += 1
        return logits, members

    def _numbered(self, result: _Result) -> Array:
        if self._next_number + result.rows > MAX_IDS:
            self._next_number = 0
            self._results.clear()
        result.first, self._next_number = self._next_number, self._next_number + result.rows
        self._results.append(result)
        return np.arange(result.first, self._next_number, dtype=np.float32)[:, None]

    def logits_of(self, numbers: Array) -> DeviceLogits:
        """Logits of the rows with these ``numbers`` (T, 1), which are consecutive rows of one step.

        Raises:
            StageFault: there is no such result any more, or memory ran out.
        """
        first, stop = int(numbers[0, 0]), int(numbers[-1, 0]) + 1
        found = next((one for one in self._results if one.first <= first and stop <= one.first + one.rows), None)
        if found is None or stop - first != len(numbers):
            raise StageFault("the logits of a step were dropped before they were asked for")
        rows = range(first - found.first, stop - found.first)
        if found.logits is not None:
            return found.logits.rows(rows)
        try:
            logits = self._ends.logits_of(found.hidden[:, rows.start : rows.stop])
            mx.eval(*logits.arrays)
        except (*FORWARD_ERRORS, MemoryError) as error:
            raise StageFault(f"the output head failed: {error}") from error
        if len(rows) == 1:
            self._policies.setdefault(found.sequences[0], AheadPolicy()).drawn = int(logits.on_host[0][0])
        return logits.rows(range(len(rows)))

    def _take_ahead(self, sequence: int, token: int) -> ComputedLogits | None:
        """The logits of the step ahead if it computes ``token`` of ``sequence``; None for any other step."""
        ahead = self._ahead
        if ahead is None or ahead.sequence != sequence or ahead.token != token:
            return None
        self._ahead = None
        return ahead.logits

    def _caches_of(self, sequences: Sequence[int]) -> list[SequenceCache]:
        """The caches of ``sequences``, without the position of a step ahead."""
        caches = super()._caches_of(sequences)
        ahead = getattr(self, "_ahead", None)
        if ahead is not None and ahead.sequence in sequences:
            self._ahead = None
            self._policies[ahead.sequence].dropped()
            cache = caches[sequences.index(ahead.sequence)]
            cache.truncate(cache.length - 1)
        return caches

    def length(self, sequence: int) -> int:
        """Positions that the sequence holds, without that of a step ahead.

        Raises:
            SequenceFault: the sequence is unknown.
        """
        held = super()._caches_of([sequence])[0].length
        return held - (self._ahead is not None and self._ahead.sequence == sequence)

    def free(self, sequence: int) -> None:
        """Release the cache of a sequence; an unknown sequence is ignored."""
        if self._ahead is not None and self._ahead.sequence == sequence:
            self._ahead = None
        self._policies.pop(sequence, None)
        while self._results and self._results[0].sequences == (sequence,):
            self._results.popleft()
        super().free(sequence)


class OneAheadEnds:
    """Embedding and head of a model whose rows stay on the GPU; implements ``EmbeddingAndHead``."""

    positional = False
    any_thread = False

    def __init__(self, stage: OneAheadStage, ends: MlxEmbeddingAndHead) -> None:
        self._stage = stage
        self.vocabulary = ends.vocabulary

    def embed(self, tokens: Sequence[int], _position: int | None = None, /) -> Array:
        """Token ids as float32 rows (T, 1) for ``OneAheadStage``, which embeds them.

        Raises:
            UsageError: a token id is outside the vocabulary.
        """
        rows = np.asarray(tokens, np.float32)[:, None]
        if rows.size and not 0 <= rows.min() <= rows.max() < self.vocabulary:
            raise UsageError(f"token ids must be from 0 to {self.vocabulary - 1}")
        return rows

    def logits(self, hidden: Array) -> Array:
        """Float32 logits (T, V) of rows (T, 1) of ``OneAheadStage``.

        Raises:
            StageFault: the rows are not of a recent step, or the computation failed.
        """
        return cast("Array", self._stage.logits_of(hidden))


def _ids(rows: Array, vocabulary: int) -> list[int]:
    """Token ids of rows (T, 1).

    Raises:
        StageFault: the rows do not hold token ids.
    """
    if rows.ndim != 2 or rows.shape[1] != 1 or not len(rows):
        raise StageFault(f"token ids of shape {rows.shape} are not (T, 1)")
    if not (rows.min() >= 0 and rows.max() < vocabulary):  # false for NaN
        raise StageFault(f"token ids must be from 0 to {vocabulary - 1}")
    ids: list[int] = rows[:, 0].astype(np.int64).tolist()
    return ids
