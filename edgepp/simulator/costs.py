"""Costs of a simulated cluster in seconds: stages, links, coordinators, and the pipelines made of them. Pure data."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Protocol

from edgepp.errors import UsageError

HEADER_BYTES = 100
"""Approximate bytes that the header and ZeroMQ's framing add to the rows of a step."""

Curve = tuple[tuple[int, float], ...]
"""(number of rows, seconds for them), fewest rows first."""


class Cost(Protocol):
    """Seconds of a step on a stage. Hashable, because equal costs are computed once per step."""

    def decode_s(self, rows: int, positions: int) -> float:
        """Seconds of a micro-batch of ``rows`` sequences with ``positions`` cached positions in all."""

    def prefill_s(self, tokens: int, position: int) -> float:
        """Seconds of a chunk of ``tokens`` tokens after ``position`` earlier ones."""


@dataclass(frozen=True)
class StageCost:
    """Costs of a stage, as measured."""

    decode: Curve
    """Seconds of a micro-batch with empty caches, by rows."""
    token_s: float
    """Seconds per token of a chunk."""
    chunk_s: float = 0.0
    """Fixed seconds of a chunk."""
    row_position_s: float = 0.0
    """Seconds per cached position that a row of a micro-batch attends to."""
    token_position_s: float = 0.0
    """Seconds per earlier position that a token of a chunk attends to."""

    def __post_init__(self) -> None:
        check_curve(self.decode)
        _check(token_s=self.token_s, chunk_s=self.chunk_s)
        _check(row_position_s=self.row_position_s, token_position_s=self.token_position_s)

    def decode_s(self, rows: int, positions: int) -> float:
        """Seconds of a step, as for ``Cost``."""
        return seconds_at(self.decode, rows) + self.row_position_s * positions

    def prefill_s(self, tokens: int, position: int) -> float:
        """Seconds of a step, as for ``Cost``."""
        mean_position = position + tokens / 2
        return self.chunk_s + tokens * (self.token_s + self.token_position_s * mean_position)

    def share(self, part: float) -> StageCost:
        """Costs of a stage with the fraction ``part`` of the layers."""
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
    """Seconds from sending to computing without the transfer, including wake-ups and codec."""
    bytes_per_s: float = math.inf
    """Rate of the link."""

    def __post_init__(self) -> None:
        _check(latency_s=self.latency_s)
        if not self.bytes_per_s > 0:
            raise UsageError(f"the rate of a link must be above 0 bytes per second, not {self.bytes_per_s}")


@dataclass(frozen=True)
class CoordinatorCost:
    """Seconds of the engine thread; its parts run one after the other."""

    head: Curve
    """Seconds of norm, head, sampling and delivery, by the rows of a step."""
    send_s: float = 0.0
    """Seconds to choose and send a step."""
    row_s: float = 0.0
    """Seconds per row or prompt token of a step, for its embedding."""
    receive_s: float = 0.0
    """Seconds to receive a step that returned."""

    def __post_init__(self) -> None:
        check_curve(self.head)
        _check(send_s=self.send_s, row_s=self.row_s, receive_s=self.receive_s)

    def head_s(self, rows: int) -> float:
        """Seconds from a step's hidden states to the tokens of its ``rows``."""
        return seconds_at(self.head, rows)


@dataclass(frozen=True)
class Replica:
    """One pipeline with its own coordinator. Link i leads to stage i, the last link back to the coordinator."""

    stages: tuple[Cost, ...]
    links: tuple[LinkCost, ...]
    coordinator: CoordinatorCost
    row_bytes: int
    """Bytes of one hidden state on the wire."""
    chunk: int = 64
    """Tokens of a prefill chunk with which a stage is efficient."""
    context: int = 8192
    """Greatest number of positions of one request."""
    budget: int | None = None
    """Greatest number of positions of all sequences together; None: no limit."""

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
        """A pipeline of ``stages`` equal machines that share the layers of ``model``."""
        if stages < 1:
            raise UsageError("a pipeline has at least one stage")
        shares = (model.share(1 / stages),) * stages
        return cls(shares, (link,) * (stages + 1), coordinator, row_bytes, chunk, context, budget)


def seconds_at(curve: Curve, rows: int) -> float:
    """Seconds for ``rows``, by linear interpolation between the points of ``curve``.

    Above the last point, each row adds the mean slope between the first and the last point.
    """
    (first, first_s), (last, last_s) = curve[0], curve[-1]
    if rows <= first:
        return first_s
    if rows >= last:
        row_s = (last_s - first_s) / (last - first) if last > first else last_s / last
        return last_s + row_s * (rows - last)
    at = bisect_left(curve, (rows, -math.inf))
    (low, low_s), (high, high_s) = curve[at - 1], curve[at]
    return low_s + (high_s - low_s) * (rows - low) / (high - low)


def check_curve(curve: Curve) -> None:
    """Check that ``curve`` has points, with rising rows and seconds that do not fall.

    Raises:
        UsageError: it is not such a curve.
    """
    rows = [point[0] for point in curve]
    seconds = [point[1] for point in curve]
    if not rows or rows[0] < 1 or rows != sorted(set(rows)) or seconds != sorted(seconds) or not seconds[0] >= 0:
        raise UsageError(f"{curve!r:.80} is not a curve", "give rows in rising order, and seconds that do not fall")
    if not math.isfinite(seconds[-1]):
        raise UsageError(f"{curve!r:.80} has no finite seconds")


def _check(**seconds: float) -> None:
    for name, value in seconds.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be a number of seconds, not {value}")
