"""The report of a simulation. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Fate = Literal["answered", "failed", "refused"]


@dataclass(frozen=True)
class Spread:
    """The distribution of a figure; all 0 without values."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The distribution of ``values``, given in any order."""
        if not len(values):
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        numbers = np.asarray(values, np.float64)
        p50, p90, p99 = np.percentile(numbers, (50, 90, 99))
        return cls(len(numbers), float(numbers.mean()), float(p50), float(p90), float(p99), float(numbers.max()))


@dataclass(frozen=True)
class Outcome:
    """The result of one request. Times are seconds from its arrival, 0 for what did not happen."""

    replica: int
    """The index of the pipeline that had the request; -1 for none."""
    fate: Fate
    tokens: int
    """Tokens of the answer."""
    reused: int
    """Tokens of the prompt that were not computed, since the stages held them."""
    begun_s: float
    """To the first admission."""
    first_s: float
    """To the first token."""
    last_s: float
    """To the last token."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second without the first token."""
        return (self.tokens - 1) / (self.last_s - self.first_s) if self.tokens > 1 else 0.0


@dataclass(frozen=True)
class ReplicaUse:
    """How busy one pipeline was."""

    active_s: float
    """Seconds with at least one admitted request."""
    stages: tuple[float, ...]
    """Each stage's computing as a share of ``active_s``."""
    coordinator: float
    """The coordinator's work as a share of ``active_s``."""
    steps: int
    rows: int
    """Rows of all micro-batches together."""
    batches: int
    preempted: int

    @property
    def bubbles(self) -> float:
        """The share of ``active_s`` in which a stage is idle, in the mean over stages."""
        return 1 - sum(self.stages) / len(self.stages) if self.active_s else 0.0


@dataclass(frozen=True)
class Recovery:
    """The cost of one failure."""

    replica: int
    stage: int
    at_s: float
    down_s: float
    """Seconds until the pipeline could begin requests again; infinite for never."""
    failed: int
    """Requests that ended with an error."""
    begun_again: int
    """Requests that were prefilled again and continued."""
    lost_positions: int
    """Positions whose keys and values were lost."""
    stall_s: Spread
    """Seconds from the failure to the next token of each request that continued."""


@dataclass(frozen=True)
class Report:
    """The result of a simulation. Rates are over ``seconds``, from the first arrival to the last token."""

    seconds: float
    requests: int
    answered: int
    failed: int
    refused: int
    tokens: int
    """Tokens of all answers, unfinished answers included."""
    ttft_s: Spread
    """Seconds from arrival to first token."""
    itl_s: Spread
    """Seconds between a request's tokens."""
    queue_s: Spread
    """Seconds from arrival to first admission."""
    replicas: tuple[ReplicaUse, ...]
    recoveries: tuple[Recovery, ...]
    outcomes: tuple[Outcome, ...]
    """In the order of the arrivals."""

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
        """The share of active time in which a stage computes, in the mean over stages and pipelines."""
        return _mean([sum(use.stages) / len(use.stages) for use in self.replicas if use.active_s])

    @property
    def bubbles(self) -> float:
        """The share of active time in which a stage is idle, in the mean over stages and pipelines."""
        return _mean([use.bubbles for use in self.replicas if use.active_s])

    @property
    def coordinator_use(self) -> float:
        """The share of active time in which a coordinator works, in the mean over pipelines."""
        return _mean([use.coordinator for use in self.replicas if use.active_s])

    @property
    def rows(self) -> float:
        """Mean rows per micro-batch."""
        return sum(use.rows for use in self.replicas) / max(1, sum(use.batches for use in self.replicas))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
