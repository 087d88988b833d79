"""Expected times of steps, learned per kind of step. Pure.

The stages measure their speeds while nothing else runs. Other programs, long contexts and slow links make steps slower,
so what counts is the ratio of the seconds that steps took to the seconds that the measured speeds say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgepp.engine.ring import Send, SendBatch, StageInfo

SLACK = 8.0
"""Times the learned duration that a step may take.

With two busy loops on each core steps take 3 times as long, under a load of 17 on 2 cores 9 times; the ratio follows.
"""
_SMOOTHING = 1 / 8
_LEAST_S = 1e-3
"""A shorter step is no measure of a ratio."""


class StepKind(NamedTuple):
    """Steps that take similar time per row, for which the backend runs the same kernels."""

    decodes: bool
    size: int
    """The number of binary digits of the number of rows."""


@dataclass(frozen=True)
class StepCost:
    """Expected seconds of a step, by the measured speeds of stages and links."""

    kind: StepKind
    compute_s: tuple[float, ...]
    """Per stage."""
    wire_s: float
    """On all links together."""

    @property
    def total_s(self) -> float:
        """Seconds from sending to returning in an empty ring."""
        return sum(self.compute_s) + self.wire_s

    @classmethod
    def of(cls, step: Send | SendBatch, stages: Sequence[StageInfo]) -> StepCost:
        """The cost of a step on these stages."""
        rows = len(step.hidden)
        return cls(
            StepKind(isinstance(step, SendBatch), rows.bit_length()),
            tuple(max(stage.decode_s, rows * stage.prefill_s) for stage in stages),
            sum(s.hop_s + (step.hidden.nbytes / s.bytes_per_s if s.bytes_per_s else 0.0) for s in stages),
        )


class StepTimes:
    """The ratios of measured to expected seconds. Outlives a ring, so that the next one knows what this one learned."""

    def __init__(self) -> None:
        self._ratios: dict[StepKind, float] = {}

    def knows(self, kind: StepKind) -> bool:
        """Whether a step of this kind has come back before."""
        return kind in self._ratios

    def add(self, cost: StepCost, took_s: float) -> None:
        """Note that a step took ``took_s`` seconds; of a step that was given up, that it took at least so long."""
        ratio = took_s / max(cost.total_s, _LEAST_S)
        known = self._ratios.get(cost.kind, 1.0)
        self._ratios[cost.kind] = known + _SMOOTHING * (ratio - known)

    def patience_s(self, kind: StepKind, expected_s: float) -> float:
        """Seconds that work which should take ``expected_s`` may take. Speeds that were measured are never too slow."""
        return SLACK * max(1.0, self._ratios.get(kind, 1.0)) * expected_s
