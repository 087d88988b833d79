"""Log of the hidden states that a stage sent on, per sequence and position, from which a lost next stage is rebuilt.

Pure: no sockets, no clock. The log of a sequence begins at position 0 and has no gap. The log of a sequence whose first
positions the stage did not compute, since it restored them from keys and values, stays empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.sequence_state import Key, keys_of, rekey

_MIN_POSITIONS = 256
"""Positions for which the log of a sequence takes memory at first; it doubles as needed."""


@dataclass
class _Rows:
    """Hidden states of one sequence, of which the first ``length`` rows are valid."""

    rows: Array
    """(positions, width), in the dtype in which they were sent."""
    length: int = 0


class BoundaryLog:
    """Hidden states that one stage sent on. Implements ``SequenceState``; belongs to one thread."""

    def __init__(self) -> None:
        self._logs: dict[Key, _Rows] = {}
        self.nbytes = 0
        """Bytes of memory that the log takes."""

    def record(self, key: Key, position: int, hidden: Array) -> None:
        """Log ``hidden`` (T, D) for positions from ``position`` on, and forget all later positions.

        The sequence has no log any more where positions before ``position`` are missing.
        """
        log = self._logs.get(key)
        end = position + len(hidden)
        if log is None or position > log.length or log.rows.dtype != hidden.dtype:
            self.free(key)
            if position:
                return
            log = self._logs[key] = self._allocate(end, hidden)
        elif end > len(log.rows):
            grown = self._allocate(end, hidden)
            grown.rows[:position] = log.rows[:position]
            self.free(key)
            log = self._logs[key] = grown
        log.rows[position:end] = hidden
        log.length = end

    def rows(self, key: Key, start: int, stop: int) -> Array | None:
        """Hidden states (stop - start, D) of positions ``[start, stop)``; None where not all of them are logged."""
        log = self._logs.get(key)
        return log.rows[start:stop] if log is not None and stop <= log.length else None

    def lengths(self, epoch: int) -> dict[int, int]:
        """Logged positions of each sequence of an epoch."""
        return {key[1]: self._logs[key].length for key in keys_of(self._logs, epoch)}

    def fork(self, source: Key, key: Key, length: int) -> None:
        """Begin the log of a sequence with the first ``length`` positions of another one, where all are logged."""
        rows = self.rows(source, 0, length)
        if rows is not None:
            self.record(key, 0, rows)

    def free(self, key: Key) -> None:
        """Forget a sequence."""
        log = self._logs.pop(key, None)
        if log is not None:
            self.nbytes -= log.rows.nbytes

    def forget(self, epoch: int) -> None:
        """Forget all sequences of an epoch."""
        for key in keys_of(self._logs, epoch):
            self.free(key)

    def inherit(self, old: int, new: int) -> None:
        """Move all sequences of the epoch ``old`` to the epoch ``new``."""
        rekey(self._logs, old, new)

    def _allocate(self, positions: int, hidden: Array) -> _Rows:
        size = max(_MIN_POSITIONS, 1 << (positions - 1).bit_length())
        log = _Rows(np.empty((size, hidden.shape[1]), hidden.dtype))
        self.nbytes += log.rows.nbytes
        return log
