"""Results of a simulation. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Status = Literal["answered", "failed", "refused"]


@dataclass(frozen=True)
class Distribution:
    """Mean, percentiles and maximum of ``count`` values; all 0 without values."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Distribution of ``values``, in any order."""
        if not len(values):
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        numbers = np.asarray(values, np.float64)
        p50, p90, p99 = np.percentile(numbers, (50, 90, 99))
        return cls(len(numbers), float(numbers.mean()), float(p50), float(p90), float(p99), float(numbers.max()))


@dataclass(frozen=True)
class Outcome:
    """Result of one request. Times are seconds from the arrival, 0 if the request did not get that far."""

    replica: int
    """Index of the pipeline; -1 if none had the request."""
    status: Status
    tokens: int
    """Tokens of the answer."""
    reused: int
    """Tokens of the prompt that the prefix cache held."""
    begun_s: float
    first_s: float
    last_s: float
    guessed: int = 0
    """Tokens that were guessed before they were sampled."""
    right: int = 0
    """Guessed tokens that were right."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Rate of the answer without the first token."""
        return (self.tokens - 1) / (self.last_s - self.first_s) if self.tokens > 1 else 0.0


@dataclass(frozen=True)
class ReplicaUse:
    """Work of one pipeline."""

    active_s: float
    """Seconds with at least one admitted request."""
    stages: tuple[float, ...]
    """Share of ``active_s`` for which each stage computes."""
    coordinator: float
    """Share of ``active_s`` for which the coordinator works."""
    rows: int
    """Rows of all micro-batches together."""
    batches: int
    preempted: int

    @property
    def bubbles(self) -> float:
        """Share of ``active_s`` for which a stage has nothing to compute, as a mean over stages."""
        return 1 - sum(self.stages) / len(self.stages) if self.active_s else 0.0


@dataclass(frozen=True)
class FailureCost:
    """Cost of one failure."""

    replica: int
    stage: int
    at_s: float
    down_s: float
    """Seconds until the pipeline could start requests again; infinite if it never could."""
    failed: int
    """Number of requests that ended in an error."""
    resumed: int
    """Number of requests that continued after the failure."""
    lost_positions: int
    """Positions whose keys and values were lost, and are computed again if requests continue."""
    stall_s: Distribution
    """Seconds from the failure to the next token of each request that continued."""


@dataclass(frozen=True)
class Report:
    """Result of a simulation. ``seconds`` lasts from the first arrival to the last token; rates are over that time."""

    seconds: float
    requests: int
    answered: int
    failed: int
    refused: int
    tokens: int
    """Tokens of all answers, unfinished ones included."""
    ttft_s: Distribution
    itl_s: Distribution
    """Seconds between two tokens of a request."""
    queue_s: Distribution
    """Seconds from the arrival of a request to its admission."""
    replicas: tuple[ReplicaUse, ...]
    recoveries: tuple[FailureCost, ...]
    outcomes: tuple[Outcome, ...]
    """One per arrival, in the given order."""

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
        """Share of the active time for which a stage computes, as a mean over stages and pipelines."""
        return _mean([sum(use.stages) / len(use.stages) for use in self.replicas if use.active_s])

    @property
    def bubbles(self) -> float:
        """Share of the active time for which a stage has nothing to compute, as a mean over stages and pipelines."""
        return _mean([use.bubbles for use in self.replicas if use.active_s])

    @property
    def coordinator_use(self) -> float:
        """Share of the active time for which a coordinator works, as a mean over pipelines."""
        return _mean([use.coordinator for use in self.replicas if use.active_s])

    @property
    def rows(self) -> float:
        """Mean rows of a micro-batch."""
        return sum(use.rows for use in self.replicas) / max(1, sum(use.batches for use in self.replicas))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
