"""What a simulation finds. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Fate = Literal["answered", "failed", "refused"]


@dataclass(frozen=True)
class Spread:
    """How a figure is spread; all 0 where there is none."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of so many ``values``, in any order."""
        if not len(values):
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        numbers = np.asarray(values, np.float64)
        p50, p90, p99 = np.percentile(numbers, (50, 90, 99))
        return cls(len(numbers), float(numbers.mean()), float(p50), float(p90), float(p99), float(numbers.max()))


@dataclass(frozen=True)
class Outcome:
    """What became of one request; times are seconds from its arrival, 0 where it did not come so far."""

    replica: int
    """Who had it; -1 where nobody did."""
    fate: Fate
    tokens: int
    """Of its answer."""
    reused: int
    """Of its prompt."""
    begun_s: float
    first_s: float
    last_s: float

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second without the first."""
        return (self.tokens - 1) / (self.last_s - self.first_s) if self.tokens > 1 else 0.0


@dataclass(frozen=True)
class ReplicaUse:
    """How busy one pipeline was."""

    active_s: float
    """With at least one request begun."""
    stages: tuple[float, ...]
    """Each stage's computing as a share of that."""
    coordinator: float
    """The coordinator's work as a share of that."""
    steps: int
    rows: int
    """Of all micro-batches together."""
    batches: int
    preempted: int

    @property
    def bubbles(self) -> float:
        """The share of that time in which a stage waits for something to do, in the mean over stages."""
        return 1 - sum(self.stages) / len(self.stages) if self.active_s else 0.0


@dataclass(frozen=True)
class Recovery:
    """What one failure cost."""

    replica: int
    stage: int
    at_s: float
    down_s: float
    """Until the pipeline could begin requests again; infinite where it never could."""
    failed: int
    """Requests that ended in an error."""
    begun_again: int
    """Requests that went on where they were."""
    lost_positions: int
    """Positions whose keys and values were lost: what is computed again, if anything is."""
    stall_s: Spread
    """From the failure to the next token of each request that went on."""


@dataclass(frozen=True)
class Report:
    """A simulation's result. Rates are over ``seconds``: from the first arrival to the last token."""

    seconds: float
    requests: int
    answered: int
    failed: int
    refused: int
    tokens: int
    """Of answers, unfinished ones with them."""
    ttft_s: Spread
    itl_s: Spread
    """Gaps between a request's tokens."""
    queue_s: Spread
    """From arrival to the start of a request."""
    replicas: tuple[ReplicaUse, ...]
    recoveries: tuple[Recovery, ...]
    outcomes: tuple[Outcome, ...]
    """In the order of the arrivals that were given."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers together, per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def requests_per_s(self) -> float:
        """Requests answered per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def stage_use(self) -> float:
        """How much of its active time a stage computes, in the mean over stages and pipelines."""
        return _mean([sum(use.stages) / len(use.stages) for use in self.replicas if use.active_s])

    @property
    def bubbles(self) -> float:
        """The rest of it."""
        return _mean([use.bubbles for use in self.replicas if use.active_s])

    @property
    def coordinator_use(self) -> float:
        """How much of its active time a coordinator works, in the mean over pipelines."""
        return _mean([use.coordinator for use in self.replicas if use.active_s])

    @property
    def rows(self) -> float:
        """Rows of a micro-batch in the mean."""
        return sum(use.rows for use in self.replicas) / max(1, sum(use.batches for use in self.replicas))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
