"""What a simulated cluster is made of: stages, links, coordinators, each by the seconds that it takes. Pure data."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Protocol

from edgepp.errors import UsageError

HEADER_BYTES = 100
"""About what a step's header and ZeroMQ's framing add to its rows."""

Curve = tuple[tuple[int, float], ...]
"""Pairs of a number of rows and the seconds that these take, fewest rows first."""


class Cost(Protocol):
    """What a stage takes for a step, in seconds. Hashable: stages with equal costs are computed once."""

    def decode_s(self, rows: int, positions: int) -> float:
        """A micro-batch of ``rows`` sequences that hold ``positions`` positions together."""

    def prefill_s(self, tokens: int, position: int) -> float:
        """A chunk of ``tokens`` tokens behind ``position`` earlier ones."""


@dataclass(frozen=True)
class StageCost:
    """A stage by measured figures."""

    decode: Curve
    """Of a micro-batch, by its rows, with empty caches."""
    token_s: float
    """More for each token of a chunk."""
    chunk_s: float = 0.0
    """Of a chunk, however short."""
    row_position_s: float = 0.0
    """More for each position that a row of a micro-batch looks back on."""
    token_position_s: float = 0.0
    """More for each position that a token of a chunk looks back on."""

    def __post_init__(self) -> None:
        check_curve(self.decode)
        _check(token_s=self.token_s, chunk_s=self.chunk_s)
        _check(row_position_s=self.row_position_s, token_position_s=self.token_position_s)

    def decode_s(self, rows: int, positions: int) -> float:
        """See ``Cost``."""
        return along(self.decode, rows) + self.row_position_s * positions

    def prefill_s(self, tokens: int, position: int) -> float:
        """See ``Cost``."""
        back = position + tokens / 2
        return self.chunk_s + tokens * (self.token_s + self.token_position_s * back)

    def share(self, part: float) -> StageCost:
        """A stage with ``part`` of this one's layers."""
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
    """One way between two machines: it carries one step after the other."""

    latency_s: float
    """From sending to computing, wake-ups and codec with it."""
    bytes_per_s: float = math.inf
    """Bytes per second."""

    def __post_init__(self) -> None:
        _check(latency_s=self.latency_s)
        if not self.bytes_per_s > 0:
            raise UsageError(f"a link carries more than {self.bytes_per_s} bytes per second")


@dataclass(frozen=True)
class CoordinatorCost:
    """What the engine's one thread takes; its parts run one after the other."""

    head: Curve
    """Norm, head, sampling and handing over, by the rows of a step."""
    send_s: float = 0.0
    """Choosing a step and sending it."""
    row_s: float = 0.0
    """More for each row or prompt token that is sent: its embedding."""
    receive_s: float = 0.0
    """Taking a step that came round."""

    def __post_init__(self) -> None:
        check_curve(self.head)
        _check(send_s=self.send_s, row_s=self.row_s, receive_s=self.receive_s)

    def head_s(self, rows: int) -> float:
        """Seconds from a step's hidden states to the tokens of its ``rows``."""
        return along(self.head, rows)


@dataclass(frozen=True)
class Replica:
    """One pipeline with a coordinator of its own: link i leads into stage i, the last one back."""

    stages: tuple[Cost, ...]
    links: tuple[LinkCost, ...]
    coordinator: CoordinatorCost
    row_bytes: int
    """Of one hidden state on the wire."""
    chunk: int = 64
    """Tokens of a chunk with which a stage is efficient."""
    context: int = 8192
    """Positions that one request may take."""
    budget: int | None = None
    """Positions that all sequences together may take."""

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
        """A whole ``model`` over so many equal machines."""
        if stages < 1:
            raise UsageError("a pipeline has at least one stage")
        shares = (model.share(1 / stages),) * stages
        return cls(shares, (link,) * (stages + 1), coordinator, row_bytes, chunk, context, budget)


def along(curve: Curve, rows: int) -> float:
    """Seconds for ``rows`` by straight lines between a curve's points.

    Past the last, each row takes what it does in the mean between the first and the last.
    """
    (fewest, least_s), (most, most_s) = curve[0], curve[-1]
    if rows <= fewest:
        return least_s
    if rows >= most:
        each_s = (most_s - least_s) / (most - fewest) if most > fewest else most_s / most
        return most_s + each_s * (rows - most)
    at = bisect_left(curve, (rows, -math.inf))
    (low, low_s), (high, high_s) = curve[at - 1], curve[at]
    return low_s + (high_s - low_s) * (rows - low) / (high - low)


def check_curve(curve: Curve) -> None:
    """Hold a curve to at least one point, in order.

    Raises:
        UsageError: it is none.
    """
    rows = [point[0] for point in curve]
    seconds = [point[1] for point in curve]
    if not rows or rows[0] < 1 or rows != sorted(set(rows)) or seconds != sorted(seconds) or not seconds[0] >= 0:
        raise UsageError(f"{curve!r:.80} is no curve", "give rows in rising order, and seconds that do not fall")
    if not math.isfinite(seconds[-1]):
        raise UsageError(f"{curve!r:.80} has no finite seconds")


def _check(**seconds: float) -> None:
    for name, value in seconds.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be a number of seconds, not {value}")
