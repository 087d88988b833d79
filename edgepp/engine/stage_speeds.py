"""Speeds of stages, as the steps of answers show them. Pure.

A stage measures itself once, when it has loaded, and other programs that start then make it look slow for as long as it
runs. Steps show its speed again and again. The engine thread adds them; any thread may read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

_NEWEST_DECODES, _NEWEST_CHUNKS = 64, 16
"""How many of the newest steps count."""
_LEAST_DECODES = 8
"""Decode steps from which on a stage's speed is known."""
_LEAST_SHARE = 0.5
"""Length of a chunk, as a share of the length with which stages are efficient, from which on it shows a rate."""


class StageSpeed(NamedTuple):
    """What steps show of one stage; None where too few have run."""

    decode_s: float | None
    """Seconds of computing of a step of one row, the mean of the newest ones but for pauses."""
    position: int
    """Positions that the sequences of these steps held, the median."""
    prefill_s: float | None
    """Seconds of computing per token of a prompt's chunk, likewise."""

    def to_json(self) -> dict[str, Any]:
        """The known values, as fields of a stage in the cluster's status."""
        found: dict[str, Any] = {}
        if self.decode_s:
            found |= {"decode_s": round(self.decode_s, 6), "decode_position": self.position}
        if self.prefill_s:
            found["prefill_tokens_per_s"] = round(1 / self.prefill_s, 1)
        return found


class StageSpeeds:
    """The newest steps of single sequences over one ring."""

    def __init__(self, num_stages: int, chunk: int) -> None:
        """``chunk`` is the number of tokens per chunk with which the stages are efficient."""
        self._num_stages, self._least_rows = num_stages, max(2, int(_LEAST_SHARE * chunk))
        self._decodes: deque[tuple[int, Sequence[float]]] = deque(maxlen=_NEWEST_DECODES)
        """Position and seconds per stage of decode steps of one row."""
        self._chunks: deque[tuple[int, Sequence[float]]] = deque(maxlen=_NEWEST_CHUNKS)
        """Rows and seconds per stage of chunks."""

    def add(self, rows: int, position: int, compute_s: Sequence[float], *, decodes: bool) -> None:
        """Add a step of ``rows`` rows of one sequence of ``position`` positions; ``compute_s`` is per stage."""
        if decodes and rows == 1:
            self._decodes.append((position, compute_s))
        elif not decodes and rows >= self._least_rows:
            self._chunks.append((rows, compute_s))

    def read(self) -> tuple[StageSpeed, ...]:
        """The speed of each stage."""
        decodes, chunks = list(self._decodes), list(self._chunks)
        known = len(decodes) >= _LEAST_DECODES
        position = int(median(at for at, _ in decodes)) if known else 0
        return tuple(
            StageSpeed(
                _typical(seconds[stage] for _, seconds in decodes) if known else None,
                position,
                _typical(seconds[stage] / rows for rows, seconds in chunks) if chunks else None,
            )
            for stage in range(self._num_stages)
        )


def _typical(seconds: Iterable[float]) -> float:
    """The mean without the slowest sixteenth: a machine that sleeps for once is no slower, a shared one always is."""
    ordered = sorted(seconds)
    return fmean(ordered[: len(ordered) - len(ordered) // 16])
