"""A simulated cluster: stages, links and coordinators, each by the seconds of its work. Pure data."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Protocol

from edgepp.errors import UsageError

HEADER_BYTES = 100
"""Bytes per step besides its rows: header and ZeroMQ's framing, roughly."""

Curve = tuple[tuple[int, float], ...]
"""Pairs of a number of rows and the seconds for these rows, fewest rows first."""


class Cost(Protocol):
    """The seconds of a stage per step. Hashable: stages with equal costs are computed once per step."""

    def decode_s(self, rows: int, positions: int) -> float:
        """Seconds for a micro-batch of ``rows`` sequences that hold ``positions`` positions together."""

    def prefill_s(self, tokens: int, position: int) -> float:
        """Seconds for a chunk of ``tokens`` tokens after ``position`` earlier ones."""


@dataclass(frozen=True)
class StageCost:
    """A stage by measured figures. Implements ``Cost``."""

    decode: Curve
    """Seconds of a micro-batch by its rows, with empty caches."""
    token_s: float
    """Seconds per token of a chunk."""
    chunk_s: float = 0.0
    """Seconds per chunk, in addition."""
    row_position_s: float = 0.0
    """Seconds per position that a row of a micro-batch attends to, in addition."""
    token_position_s: float = 0.0
    """Seconds per position that a token of a chunk attends to, in addition."""

    def __post_init__(self) -> None:
        check_curve(self.decode)
        _check(token_s=self.token_s, chunk_s=self.chunk_s)
        _check(row_position_s=self.row_position_s, token_position_s=self.token_position_s)

    def decode_s(self, rows: int, positions: int) -> float:
        """Seconds for a micro-batch of ``rows`` sequences that hold ``positions`` positions together."""
        return interpolate(self.decode, rows) + self.row_position_s * positions

    def prefill_s(self, tokens: int, position: int) -> float:
        """Seconds for a chunk of ``tokens`` tokens after ``position`` earlier ones."""
        back = position + tokens / 2
        return self.chunk_s + tokens * (self.token_s + self.token_position_s * back)

    def share(self, part: float) -> StageCost:
        """The cost of a stage with the share ``part`` of this stage's layers."""
        return replace(
            self,
            decode=tuple((rows, part * seconds) for rows, seconds in self.decode),
            token_s=part * self.token_s,
            chunk_s=part * self.chunk_s,
            row_position_s=part * self.row_position_s,
            token_position_s=part * self.token_position_s,
        )


@dataclass(frozen=True)
class LinkCost:
    """One direction between two machines, which carries one step after the other."""

    latency_s: float
    """Seconds from sending to computing, wake-ups and codec included."""
    bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        _check(latency_s=self.latency_s)
        if not self.bytes_per_s > 0:
            raise UsageError(f"bytes_per_s of a link must be above 0, not {self.bytes_per_s}")


@dataclass(frozen=True)
class CoordinatorCost:
    """The work of the engine thread, whose parts run one after the other."""

    head: Curve
    """Seconds of norm, head, sampling and delivery, by the rows of a step."""
    send_s: float = 0.0
    """Seconds per step to choose and send it."""
    row_s: float = 0.0
    """Seconds per row or prompt token of a step, for its embedding."""
    receive_s: float = 0.0
    """Seconds per step to receive its result."""

    def __post_init__(self) -> None:
        check_curve(self.head)
        _check(send_s=self.send_s, row_s=self.row_s, receive_s=self.receive_s)

    def head_s(self, rows: int) -> float:
        """Seconds from the hidden states of ``rows`` rows to their tokens."""
        return interpolate(self.head, rows)


@dataclass(frozen=True)
class Replica:
    """One pipeline with its own coordinator: link i leads into stage i, the last link back to the coordinator."""

    stages: tuple[Cost, ...]
    links: tuple[LinkCost, ...]
    coordinator: CoordinatorCost
    row_bytes: int
    """Bytes of one hidden state on the wire."""
    chunk: int = 64
    """Tokens per chunk with which a stage is efficient."""
    context: int = 8192
    """Positions that one request may take at most."""
    budget: int | None = None
    """Positions that all sequences together may take; None for no limit."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise UsageError("a pipeline has at least one stage")
        if len(self.links) != len(self.stages) + 1:
            raise UsageError(f"{len(self.stages)} stages have {len(self.stages) + 1} links, not {len(self.links)}")
        for name, value in (("row_bytes", self.row_bytes), ("chunk", self.chunk), ("context", self.context)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")

    @classmethod
    def even(
        cls,
        model: StageCost,
        stages: int,
        link: LinkCost,
        coordinator: CoordinatorCost,
        row_bytes: int,
        chunk: int = 64,
        context: int = 8192,
        budget: int | None = None,
    ) -> Replica:
        """A replica of ``model``, the cost of all layers on one machine, divided over equal ``stages``."""
        if stages < 1:
            raise UsageError("a pipeline has at least one stage")
        shares = (model.share(1 / stages),) * stages
        return cls(shares, (link,) * (stages + 1), coordinator, row_bytes, chunk, context, budget)


def interpolate(curve: Curve, rows: int) -> float:
    """Seconds for ``rows`` by straight lines between the points of ``curve``.

    Beyond the last point, each further row takes the mean of a row between the first and the last point.
    """
    (min_rows, min_s), (max_rows, max_s) = curve[0], curve[-1]
    if rows <= min_rows:
        return min_s
    if rows >= max_rows:
        row_s = (max_s - min_s) / (max_rows - min_rows) if max_rows > min_rows else max_s / max_rows
        return max_s + row_s * (rows - max_rows)
    at = bisect_left(curve, (rows, -math.inf))
    (low, low_s), (high, high_s) = curve[at - 1], curve[at]
    return low_s + (high_s - low_s) * (rows - low) / (high - low)


def check_curve(curve: Curve) -> None:
    """Check that ``curve`` has at least one point, and rising rows with seconds that do not fall.

    Raises:
        UsageError: the curve has no point, or its points are out of order.
    """
    rows = [point[0] for point in curve]
    seconds = [point[1] for point in curve]
    if not rows or rows[0] < 1 or rows != sorted(set(rows)) or seconds != sorted(seconds) or not seconds[0] >= 0:
        raise UsageError(f"{curve!r:.80} is not a curve", "give rows in rising order, and seconds that do not fall")
    if not math.isfinite(seconds[-1]):
        raise UsageError(f"{curve!r:.80} must have finite seconds")


def _check(**seconds: float) -> None:
    for name, value in seconds.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be a number of seconds, not {value}")
