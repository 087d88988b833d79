"""Sums of the times of steps since an engine took its ring, by place. Readers take differences of two readings.

The engine thread adds; any thread may read. A reading made during a step may have some of its sums and not the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepSums:
    """One reading. All times are in seconds; tuples have one value per stage."""

    tokens: int
    """Tokens that were sampled."""
    prompt_positions: int
    """Positions of prompts that were computed."""
    busy_s: tuple[float, ...]
    """Computing, of all steps."""
    steps: int
    """Decode steps that returned: one token of each sequence, or a guess."""
    ring_s: float
    """Decode steps, from sending to returning."""
    compute_s: tuple[float, ...]
    """Computing, of decode steps."""
    queue_s: tuple[float, ...]
    """Waiting at a stage for earlier steps, of decode steps, as ``QueueTimes`` derives it."""
    draws: int
    """Steps from which tokens were drawn."""
    head_s: float
    """Norm, output head and sampling, on the coordinator."""


class StepTotals:
    """The sums over one ring."""

    def __init__(self, num_stages: int) -> None:
        self._tokens = self._prompt_positions = self._steps = self._draws = 0
        self._ring_s = self._head_s = 0.0
        self._busy_s, self._compute_s, self._queue_s = ([0.0] * num_stages for _ in range(3))

    def add_step(
        self, positions: int, compute_s: Sequence[float], queue_s: Sequence[float], ring_s: float, *, decodes: bool
    ) -> None:
        """Add a step of ``positions`` positions of all its sequences; ``queue_s`` is empty where no step waits."""
        for stage, seconds in enumerate(compute_s):
            self._busy_s[stage] += seconds
        if not decodes:
            self._prompt_positions += positions
            return
        self._steps += 1
        self._ring_s += ring_s
        for stage, seconds in enumerate(compute_s):
            self._compute_s[stage] += seconds
        for stage, seconds in enumerate(queue_s):
            self._queue_s[stage] += seconds

    def add_head(self, seconds: float) -> None:
        """Add the drawing of tokens from one step."""
        self._draws += 1
        self._head_s += seconds

    def add_tokens(self, count: int) -> None:
        """Add sampled tokens."""
        self._tokens += count

    def read(self) -> StepSums:
        """The sums so far. Safe from any thread."""
        return StepSums(
            tokens=self._tokens,
            prompt_positions=self._prompt_positions,
            busy_s=tuple(self._busy_s),
            steps=self._steps,
            ring_s=self._ring_s,
            compute_s=tuple(self._compute_s),
            queue_s=tuple(self._queue_s),
            draws=self._draws,
            head_s=self._head_s,
        )
