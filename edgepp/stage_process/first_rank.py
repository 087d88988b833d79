"""Rank 0 of a tensor-parallel stage: a ``StageModel`` whose calls are repeated by the other ranks.

Whatever uses the model, such as ``ModelRunner``, does not notice the ranks. Rank 0 changes its own cache first, and
waits for the others where memory may be short, so that the caches of all ranks always hold the same positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgepp.backend.base import KvChunk
from edgepp.backend.kv_layout import join_heads, split_heads
from edgepp.backend.kv_transfer import check_piece, check_size, joined
from edgepp.backend.loader import RankModel
from edgepp.backend.step_checks import check_rows
from edgepp.errors import PeerLost, StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.cache_orders import change_cache
from edgepp.stage_process.kv_pieces import Cut, max_piece_bytes
from edgepp.stage_process.output_head import NO_RESULT, WantedResult
from edgepp.stage_process.rank_group import SUMS_PER_LAYER, RankGroup
from edgepp.stage_process.rank_orders import RankOrders
from edgepp.stage_process.split_head import SplitHead
from edgepp.wire import codec
from edgepp.wire.messages.ranks import CacheDone, CacheOrder, KvExported, KvOrder, StepOrder


class FirstRank:
    """The whole stage, as rank 0 sees it; implements ``StageModel``.

    What it exports and imports looks like that of a stage of one process.
    """

    interruption = None  # the ranks compute a step all or not at all

    def __init__(
        self,
        model: RankModel,
        group: RankGroup,
        heads: Sequence[int],
        on_lost: Callable[[PeerLost], None],
        head: SplitHead | None = None,
    ) -> None:
        """``model`` is rank 0's part, and ``heads`` the number of KV heads of each rank, in rank order.

        ``on_lost`` is called, and must not return, when another rank is gone. ``head`` is rank 0's part of the output
        head, where all ranks have theirs.
        """
        self._model = model
        self._group = group
        self._heads = heads
        self._layout = model.layout.of_heads(sum(heads))
        self.kv_layout = self._layout.name
        self._max_kv_bytes = max_piece_bytes(model.hidden_size)
        self._head = head
        self._wanted = self._computed = NO_RESULT
        """What is wanted of the next step, and of the last one."""
        self._orders = RankOrders(group, on_lost)
        self._step = 0
        self.timed = False
        """Whether the next steps are timed."""
        self.times: list[tuple[int, bytes]] = []
        """Times of all ranks in the last step, as ``wire.rank_marks.packed_times`` makes them; empty if not timed."""
        self.layers, self.hidden_size, self.dtype = model.layers, model.hidden_size, model.dtype
        self.chunk, self.device = model.chunk, model.device

    @property
    def has_head(self) -> bool:
        """Whether the ranks compute the output head too."""
        return self._head is not None

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can be truncated to any length, and forked."""
        return self._model.rewinds

    def open(self, sequence: int, capacity: int) -> None:
        """Begin a sequence of at most ``capacity`` positions on all ranks; an open sequence of that id is freed first.

        Raises:
            StageFault: the capacity is beyond the model's context, or memory of a rank is short.
        """
        self._change(CacheOrder("open", sequence, 0, 0, capacity))

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        """Begin ``sequence`` on all ranks with a copy of the first ``length`` positions of ``source``.

        Raises:
            SequenceFault: the source is unknown or holds fewer positions.
            StageFault: the capacity does not fit, or memory of a rank is short; ``sequence`` is then unknown.
        """
        self._change(CacheOrder("fork", sequence, source, length, capacity))

    def resize(self, sequence: int, capacity: int) -> None:
        """Change the capacity of a sequence on all ranks.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the capacity does not fit: nothing changed. Or memory of another rank is short, and the sequence
                is freed.
        """
        self._change(CacheOrder("resize", sequence, 0, 0, capacity))

    def truncate(self, sequence: int, length: int) -> None:
        """Drop every position of a sequence from ``length`` on, on all ranks.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: the caches of the family cannot be truncated.
        """
        self._change_unanswered(CacheOrder("truncate", sequence, 0, length, 0))

    def free(self, sequence: int) -> None:
        """Release the caches of a sequence; an unknown sequence is ignored."""
        self._change_unanswered(CacheOrder("free", sequence, 0, 0, 0))

    def extend(self, sequence: int, hidden: Array) -> Array:
        """Run ``hidden`` (T, D) at the sequence's next T positions, on all ranks; returns (T, D).

        Raises:
            SequenceFault: the sequence is unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or a rank failed.
        """
        if hidden.ndim != 2 or not len(hidden) or hidden.shape[1] != self.hidden_size:
            raise StageFault(f"hidden states of shape {hidden.shape} are not (T, {self.hidden_size})")
        return self._compute((sequence,), hidden, lambda: self._model.extend(sequence, hidden))

    def decode(self, sequences: Sequence[int], hidden: Array) -> Array:
        """Run row i of ``hidden`` (B, D) at the next position of ``sequences[i]``, on all ranks; returns (B, D).

        Raises:
            SequenceFault: some of the sequences are unknown or full; nothing was computed.
            StageFault: the hidden states do not fit, or a rank failed.
        """
        check_rows(sequences, hidden, self.hidden_size)
        return self._compute(tuple(sequences), hidden, lambda: self._model.decode(sequences, hidden))

    def expect(self, wanted: WantedResult) -> None:
        """Let the next step compute what is ``wanted`` of the output head too, for ``result``."""
        self._wanted = wanted

    def result(self, hidden: Array) -> Array:
        """What was wanted of the last step, which gave ``hidden`` (T, D): float32 logits (R, V), or candidates.

        Raises:
            StageFault: the head failed on a rank.
        """
        head, wanted = self._head, self._computed
        if head is None or not wanted.rows:
            raise StageFault("no result of the output head was asked for")
        return self._guarded_step(lambda: head.result(self._group, hidden, wanted))

    def length(self, sequence: int) -> int:
        """Positions that the cache of the sequence holds.

        Raises:
            SequenceFault: the sequence is unknown.
        """
        return self._model.length(sequence)

    def export_kv(self, sequence: int, layers: LayerRange, start: int, stop: int) -> Sequence[KvChunk]:
        """Copy the keys and values of a sequence in ``layers`` at positions [start, stop), those of all ranks together.

        Raises:
            SequenceFault: the sequence is unknown or holds fewer than ``stop`` positions.
            StageFault: the stage lacks the layers, the positions are not a range or too many for a message, or a rank
                failed.
        """
        check_piece(self.layers, self._layout, layers, start, stop)
        return [self._export(sequence, part, start, stop) for part in self._portions(layers, stop - start)]

    def import_kv(self, sequence: int, layers: LayerRange, start: int, stop: int, data: Sequence[KvChunk]) -> None:
        """Write keys and values of a stage of the same ``kv_layout``: to each rank those of its heads.

        Where another rank cannot write them, ``set_length`` raises the reason.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: layers, positions or number of bytes do not fit: nothing was written. Or memory is short: the
                sequence may then be unknown.
        """
        check_piece(self.layers, self._layout, layers, start, stop)
        piece = memoryview(joined(data))
        check_size(self._layout, layers, range(start, stop), len(piece))
        for part in self._portions(layers, stop - start):
            num_bytes = len(part) * (stop - start) * self._layout.layer_bytes
            self._import(sequence, part, start, stop, piece[:num_bytes])
            piece = piece[num_bytes:]

    def set_length(self, sequence: int, length: int) -> None:
        """Let a sequence hold ``length`` positions on all ranks, where all layers hold or imported as many.

        Raises:
            SequenceFault: the sequence is unknown.
            StageFault: some layer has fewer positions: nothing changed. Or another rank could not import them, and the
                sequence is freed.
        """
        self._change(CacheOrder("set_length", sequence, 0, length, 0))

    @property
    def kv_bytes(self) -> int:
        """Bytes that the KV caches of all open sequences take in the process of rank 0."""
        return self._model.kv_bytes

    def _compute(self, sequences: tuple[int, ...], hidden: Array, work: Callable[[], Array]) -> Array:
        """Have all ranks compute a step; ``work`` computes it here."""
        positions = tuple(self._model.length(sequence) for sequence in sequences)
        self._step += 1
        hidden = np.ascontiguousarray(hidden)
        self._computed, self._wanted = self._wanted, NO_RESULT
        (rows, width), dtype = hidden.shape, codec.dtype_name(hidden.dtype)
        header = StepOrder(self._step, sequences, positions, rows, width, dtype, *self._computed, self.timed)
        self._orders.give(header, hidden.tobytes())
        self.times = []
        self._group.begin_step(self._step, SUMS_PER_LAYER * len(self.layers) if self.timed else 0)
        out = self._guarded_step(work)
        if self.timed:
            self.times = self._orders.guarded(self._group.times)
        return out

    def _guarded_step(self, work: Callable[[], Array]) -> Array:
        """Do ``work`` of the present step; a failure is told to the other ranks."""
        try:
            return self._orders.guarded(work)
        except PeerLost:
            raise
        except Exception as error:
            reason = str(error)
            self._orders.guarded(lambda: self._group.fail_step(reason))
            raise

    def _change_unanswered(self, order: CacheOrder) -> None:
        """Change a cache here, then on the other ranks, which can do it where this one can."""
        change_cache(self._model, order)
        self._orders.give(order)

    def _change(self, order: CacheOrder) -> None:
        """Change a cache here, then on the other ranks; where one of those cannot, the sequence is freed on all."""
        try:
            change_cache(self._model, order)
        except StageFault:
            self._free_if_unknown(order.sequence)
            raise
        self._orders.give(order)
        reasons = [reason for rank in self._orders.others if (reason := self._done(rank))]
        if reasons:
            self.free(order.sequence)
            raise StageFault(reasons[0])

    def _free_if_unknown(self, sequence: int) -> None:
        """Free a sequence on the other ranks that rank 0 could not begin, or has dropped."""
        try:
            self._model.length(sequence)
        except StageFault:
            self._orders.give(CacheOrder("free", sequence, 0, 0, 0))

    def _done(self, rank: int) -> str:
        """Wait for the reply of a rank to the last order; why the rank could not follow it, or empty."""
        message, _ = self._orders.reply(rank, CacheDone)
        return f"rank {rank}: {message.reason}" if message.reason else ""

    def _portions(self, layers: LayerRange, positions: int) -> Iterator[LayerRange]:
        """``layers`` in parts, of which one message carries keys and values at so many positions."""
        layer_bytes = positions * self._layout.layer_bytes
        if layer_bytes > self._max_kv_bytes:
            raise StageFault(f"keys and values of {positions} positions are too many for one message between ranks")
        return Cut.of(layers, layer_bytes, self._max_kv_bytes).groups()

    def _export(self, sequence: int, layers: LayerRange, start: int, stop: int) -> bytes:
        parts: list[KvChunk] = [joined(self._model.export_kv(sequence, layers, start, stop))]
        self._orders.give(KvOrder("export", sequence, layers.start, layers.stop, start, stop))
        replies = [self._orders.reply(rank, KvExported) for rank in self._orders.others]
        for rank, (message, frames) in enumerate(replies, 1):
            if message.reason:
                raise StageFault(f"rank {rank}: {message.reason}")
            if [len(frame) * self._heads[0] for frame in frames] != [len(parts[0]) * self._heads[rank]]:
                raise self._orders.broken(rank, "keys and values of another size")
            parts.append(frames[0])
        return join_heads(self._layout, self._heads, parts, len(layers), stop - start)

    def _import(self, sequence: int, layers: LayerRange, start: int, stop: int, piece: memoryview) -> None:
        mine, *others = split_heads(self._layout, self._heads, piece, len(layers), stop - start)
        try:
            self._model.import_kv(sequence, layers, start, stop, [mine])
        except StageFault:
            self._free_if_unknown(sequence)
            raise
        self._orders.give_parts(KvOrder("import", sequence, layers.start, layers.stop, start, stop), others)

    def check_ranks(self) -> None:
        """End the process where another rank is gone."""
        self._orders.check()

    def release_others(self) -> None:
        """Give no orders from now on: the other ranks end at the same time as this one."""
        self._orders.release()
