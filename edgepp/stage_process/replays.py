"""Logged hidden states on their way to stages that have lost them, one chunk at a time between two normal frames."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.boundary_log import BoundaryLog
from edgepp.wire import codec
from edgepp.wire.messages.data import REPLAYED, Forward
from edgepp.wire.messages.recovery import Replay

MAX_ROWS = 512
"""Rows of one frame."""
MAX_QUEUED = 4096
"""Replays of one ring that may wait."""


@dataclass
class _Progress:
    replay: Replay
    position: int
    """First position that was not sent yet."""


class Replays:
    """Replays of one ring, oldest first."""

    def __init__(self, log: BoundaryLog, chunk: int) -> None:
        """``chunk`` is the number of rows with which a stage is efficient."""
        self._log = log
        self._rows = max(1, min(chunk, MAX_ROWS))
        self._queue: deque[_Progress] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, replay: Replay) -> None:
        """Queue a replay.

        Raises:
            StageFault: Not all positions are logged, or too many replays wait.
        """
        if len(self._queue) >= MAX_QUEUED:
            raise StageFault(f"{MAX_QUEUED} replays wait already")
        if self._log.rows((replay.epoch, replay.sequence), replay.start, replay.stop) is None:
            raise StageFault(f"the log of the stage does not hold positions {replay.start} to {replay.stop - 1}")
        self._queue.append(_Progress(replay, replay.start))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the next frame at most; 0 where nothing waits."""
        replay = self._queue[0].replay if self._queue else None
        rows = None if replay is None else self._log.rows((replay.epoch, replay.sequence), 0, 1)
        return 0 if rows is None else rows.nbytes * self._rows

    def take(self) -> tuple[Forward, Array] | None:
        """The next frame and its hidden states; None where nothing waits.

        Replays whose sequence was freed, or has gone back to an earlier position, meanwhile come to nothing.
        """
        while self._queue:
            replay, position = self._queue[0].replay, self._queue[0].position
            stop = min(position + self._rows, replay.stop)
            rows = self._log.rows((replay.epoch, replay.sequence), position, stop)
            if rows is None or stop == replay.stop:
                self._queue.popleft()
            else:
                self._queue[0].position = stop
            if rows is not None:
                return _frame(replay, position, rows), rows
        return None

    def clear(self) -> list[Replay]:
        """Give up all replays, and return them."""
        replays = [one.replay for one in self._queue]
        self._queue.clear()
        return replays


def _frame(replay: Replay, position: int, rows: Array) -> Forward:
    return Forward(
        epoch=replay.epoch,
        sequence=replay.sequence,
        step=REPLAYED,
        position=position,
        capacity=replay.capacity,
        source=replay.source if position == replay.start else 0,
        wanted_rows=0,
        rows=len(rows),
        width=rows.shape[1],
        dtype=codec.dtype_name(rows.dtype),
        codec="none",
        compute_us=(),
        until=replay.until,
    )
