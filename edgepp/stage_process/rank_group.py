"""One rank of a tensor-parallel stage among the others: the sums over all ranks in a step, and results for rank 0.

Each rank sends its partial sum to every other one, and adds all of them in the order of the ranks: one latency, and the
same bits everywhere. Between processes of one machine the sums go through pairs of sockets, which is faster
(``local_sums``), else over the links (``rank_links``). The group ends as one: a rank that is gone ends it for all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.local_sums import FaultSeen, LocalSums, RankEnded
from edgepp.stage_process.rank_links import RankLinks
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.ranks import HeadPart, Partial, RankFault, RankTimings
from edgepp.wire.rank_marks import num_times, packed_times
from edgepp.wire.text_fields import sentence

SUMS_PER_LAYER = 2
"""Sums per layer of a step; of a step that is computed in several parts, so many per part."""


class PeerFault(StageFault):
    """Another rank cannot compute the step; the others do not go on with it either."""


class RankGroup(RankLinks):
    """One rank's links with the others, and what they exchange in a step. All methods belong to one thread."""

    _local: LocalSums | None = None
    _step = _sums = _num_timed = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As for ``RankLinks``."""
        super().__init__(*args, **kwargs)
        self._times_ns: list[int] = []
        """When the step began, and its timed sums began and ended, in turn."""
        self._told: dict[int, RankTimings] = {}
        """What other ranks told of their times in the step, by rank."""

    def add_locally(self, sums: LocalSums) -> None:
        """Let sums go through ``sums``, as all ranks are on this machine and do the same; the group closes it."""
        self._local = sums

    def begin_step(self, step: int, timed: int = 0) -> None:
        """Let the next reductions belong to the step number ``step``; the first ``timed`` ones are timed."""
        self._step, self._sums, self._num_timed = step, 0, timed
        if timed:
            self._times_ns, self._told = [time.perf_counter_ns()], {}

    def times(self) -> list[tuple[int, bytes]]:
        """In rank 0, the times of all ranks in the present step, as ``packed_times`` makes them, in rank order.

        Raises:
            PeerLost: a rank is gone, or tells times of something else.
        """
        others = [self._times_of(rank) for rank in self._links]
        return [packed_times(self._times_ns), *((told.begun_us, told.times) for told in others)]

    def _times_of(self, rank: int) -> RankTimings:
        while rank not in self._told:  # only where sums go another way than the ranks' messages
            message, _ = self.next_of(rank)
            if not isinstance(message, RankTimings):
                raise self.broken(rank, f"sent {message} in place of its times")
            self._note_times(rank, message)
        return self._told[rank]

    def _note_times(self, rank: int, message: RankTimings) -> None:
        """Take what a rank tells of its times; what it tells of a step that failed is of no use any more."""
        if message.step < self._step:
            return
        is_due = self._num_timed and message.step == self._step and rank not in self._told
        if not is_due or num_times(message.times) != 2 * self._num_timed - 1:
            raise self.broken(rank, f"sent times of {num_times(message.times)} halves and sums, unasked")
        self._told[rank] = message

    def fail_step(self, reason: str) -> None:
        """Tell the other ranks that this rank cannot compute the step, or not go on with it.

        Raises:
            PeerLost: one of them is gone.
        """
        if self._local is not None:
            self._local.fail(self._step)
        self.send_all([encode(RankFault(self._step, sentence(reason)))])

    def reduce(self, partial: Array, total: Array, /) -> None:
        """Write the sum of all ranks' ``partial`` into ``total``, as ``Reduction`` says.

        Raises:
            PeerFault: another rank cannot compute the step.
            PeerLost: another rank is gone, or is not at the same point.
        """
        mine = np.ascontiguousarray(partial, np.float32)
        timed = self._sums < self._num_timed
        if timed:
            self._times_ns.append(time.perf_counter_ns())
            if self.rank and self._sums + 1 == self._num_timed:
                self.send(0, [encode(RankTimings(self._step, *packed_times(self._times_ns)))])
        others = self._exchange(mine) if self._local is None else self._exchange_here(mine, self._local)
        parts = [mine if rank == self.rank else others[rank] for rank in range(self.ranks)]
        np.add(parts[0], parts[1], out=total)
        for part in parts[2:]:
            np.add(total, part, out=total)
        self._sums += 1
        if timed:
            self._times_ns.append(time.perf_counter_ns())

    def _exchange(self, mine: Array) -> dict[int, Array]:
        rows, width = mine.shape
        # A copy, since a long frame leaves after the next half has begun to overwrite ``partial``.
        partial_sum = Partial(self._step, self._sums, rows, width)
        self.send_all([encode(partial_sum), mine.tobytes()])
        return {rank: self._array_of(rank, partial_sum) for rank in self._links}

    def _exchange_here(self, mine: Array, local: LocalSums) -> dict[int, Array]:
        try:
            return local.exchange(self._step, self._sums, mine, self.check_connected)
        except FaultSeen as seen:
            self._array_of(seen.rank, Partial(self._step, self._sums, *mine.shape))  # raises with the reason
            raise
        except RankEnded as ended:
            raise self.broken(ended.rank, ended.problem) if ended.problem else self.lost(ended.rank) from ended

    def send_head_part(self, part: Array) -> None:
        """Send this rank's part of a step's result, float32 (R, W), to rank 0.

        Raises:
            PeerLost: rank 0 is gone.
        """
        rows, width = part.shape
        self.send(0, [encode(HeadPart(self._step, rows, width)), part.tobytes()])

    def head_part_of(self, rank: int, rows: int, width: int) -> Array:
        """The part of another rank, awaited: float32 (rows, width).

        Raises:
            PeerFault: the rank cannot compute it.
            PeerLost: the rank is gone, or is not at the same point.
        """
        return self._array_of(rank, HeadPart(self._step, rows, width))

    def _array_of(self, rank: int, expected: Partial | HeadPart) -> Array:
        rows, width = expected.rows, expected.width
        while True:
            message, tensor = self.next_of(rank)
            if isinstance(message, RankTimings):
                self._note_times(rank, message)
                continue
            if isinstance(message, Partial | HeadPart | RankFault) and message.step < self._step:
                continue  # of a step that failed
            if isinstance(message, RankFault) and message.step == self._step:
                raise PeerFault(f"rank {rank}: {message.reason}")
            if message != expected or len(tensor) != 1 or len(tensor[0]) != 4 * rows * width:
                raise self.broken(rank, f"sent {message} in place of {expected}")
            return np.frombuffer(tensor[0], np.float32).reshape(rows, width)

    def close(self) -> None:
        """Close all links and sockets."""
        super().close()
        if self._local is not None:
            self._local.close()
